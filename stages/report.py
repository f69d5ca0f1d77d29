"""Writes the result page (one self-contained HTML file) and prints the table of results.

    python stages/report.py --pairs … --out data/report      # see dvc.yaml for the whole line
"""

import _repository  # noqa: F401, I001 — first: it sets the import path

from pathlib import Path

import polars as pl
from rich.console import Console
from rich.table import Table

from pipeline.artifacts import read_table, replacing
from pipeline.benchmarks.params import Benchmark, FewShot
from pipeline.clustering.schemas import CLUSTERS, DOMAINS, LABELS, TOPICS
from pipeline.gram.params import Methods
from pipeline.pairs.index import failure_reasons
from pipeline.pairs.noise import least_score
from pipeline.pairs.params import Filter
from pipeline.pairs.schemas import KEPT, PAIRS
from pipeline.params import load_params
from pipeline.report import figures
from pipeline.report.gallery import topic_cards
from pipeline.report.page import figure_html, render, table_rows
from pipeline.report.params import Report
from pipeline.report.results import AVERAGE, chance, epochs_table, read_epochs, read_results
from pipeline.stage import parser, run

READS = {
    "seed": ("seed", int),
    "filter": ("filter", Filter),
    "methods": ("methods", Methods),
    "benchmarks": ("benchmarks", dict[str, Benchmark]),
    "few_shot": ("few_shot", FewShot),
    "report": ("report", Report),
}


def print_table(results: dict, titles: dict[str, str]) -> None:
    """A line per benchmark and method: it fits 80 columns however many methods there are."""
    table = Table(title="Base-to-new accuracy (%), mean ± standard deviation over seeds")
    for name in ("benchmark", "method"):
        table.add_column(name, no_wrap=True)
    for name in ("base", "new", "H"):
        table.add_column(name, justify="right", no_wrap=True)
    for benchmark, by_method in results.items():
        for i, (method, title) in enumerate(titles.items()):
            found = by_method[method]
            cells = [f"{found[k]:.2f}" + (f" ± {found[f'{k}_sd']:.2f}" if found["seeds"] > 1 else "       ") for k in ("base", "new", "H")]
            table.add_row("" if i else benchmark, title, *cells, end_section=i == len(titles) - 1)
    Console().print(table)


def main():
    cli = parser(__doc__)
    for name, what in {
        "pairs": "Parquet: one row per caption", "shards": "folder of picture shards", "kept": "Parquet: reason of every rejection",
        "topics": "Parquet: map place and membership strength per pair", "clusters": "Parquet: topic per pair", "labels": "Parquet: name and words per topic", "domains": "Parquet: domain per pair",
        "starts": "folder of starts by method", "benchmarks": "folder of benchmarks", "scores": "folder of scores by benchmark and method",
        "out": "folder for report.html, results.csv and epochs-<half>.csv",
    }.items():
        cli.add_argument(f"--{name}", type=Path, required=True, help=what)
    args = cli.parse_args()
    p = load_params(args.params, READS)
    titles = {name: m.title for name, m in (p.methods.direct | p.methods.meta).items()}
    names = list(p.benchmarks)
    results = read_results(args.scores, names, titles)

    pairs = pl.from_arrow(read_table(args.pairs, PAIRS, ["key", "status", "error", "shard"]))
    kept = pl.from_arrow(read_table(args.kept, KEPT))
    places = pl.from_arrow(read_table(args.topics, TOPICS, ["key", "strength", "x", "y"]))
    topics = pl.from_arrow(read_table(args.clusters, CLUSTERS)).join(places, on="key", validate="1:1")
    labels = pl.from_arrow(read_table(args.labels, LABELS)).sort("size", "topic", descending=[True, False])  # the largest first
    domains = pl.from_arrow(read_table(args.domains, DOMAINS))
    counts = {
        "captions": len(pairs), "whole pictures": int((pairs["status"] == "success").sum()), "kept by the filter": int(kept["kept"].sum()),
        "in topics": int((topics["topic"] >= 0).sum()),
    }
    failures = pairs.filter(pl.col("status") != "success").group_by("status").len().sort("len", descending=True)
    reasons = kept.filter(~pl.col("kept")).group_by("reason").len().sort("len", descending=True)
    dropped = "Lost on the way: " + ", ".join(f"{n:,} {why.replace('_', ' ')}" for why, n in [*failures.iter_rows(), *reasons.iter_rows()]) + "."
    judged = kept["reason"].is_in(["", "mismatch"]).to_numpy()
    scores = kept["score"].to_numpy()
    name_of = dict(labels.select("topic", "name").iter_rows())
    mapped = topics.drop_nulls("x")
    points = mapped.sample(min(len(mapped), p.report.map_points), seed=p.seed).join(kept.select("key", "caption"), on="key").sort("key")
    outliers = int((topics["topic"] < 0).sum())
    epochs = read_epochs(args.scores, names, titles)
    curves = {m: pl.read_csv(args.starts / m / "curve.csv") for m, method in p.methods.meta.items() if method.algorithm == "gram"}

    html = render({
        "lead": f"{len(titles)} methods on {len(names)} benchmarks; prompts meta-learned from {counts['in topics']:,} unlabelled image–text pairs in {len(labels)} topics.",
        "titles": list(titles.values()), "shots": p.few_shot.shots, "seeds": len(p.few_shot.seeds),
        "rows": table_rows(results, chance(args.benchmarks, names), list(titles)),
        "funnel": figure_html(figures.funnel(counts), "funnel"), "dropped": dropped,
        "failures": figure_html(figures.failures(lost), "failures") if (lost := failure_reasons(pairs)) else "",
        "histogram": figure_html(figures.score_histogram(scores, judged, least_score(scores, p.filter)), "scores"),
        "map": figure_html(figures.topic_map(points, name_of), "topic-map"),
        "map_note": f"One dot per kept caption ({len(points):,} shown), near to those that say similar things; {outliers:,} are in no topic.",
        "cards": topic_cards(labels, domains, kept.join(places, on="key"), pairs, args.shards, topics=p.report.topics, per_domain=p.report.pictures_per_domain),
        "topics": labels.select("name", "size", "words").to_dicts(),
        "meta_curves": [{
            "title": titles[m], "figure": figure_html(figures.meta_curve(curve), f"meta-{m}"),
            "agreement": figure_html(figures.agreement_curve({titles[m]: [curve]}), f"agreement-{m}"),
        } for m, curve in curves.items()],
        "epoch_figures": [figure_html(figures.epoch_curves(epochs, titles, half), f"epochs-{half}") for half in ("base", "new")],
    })
    with replacing(args.out / "report.html") as temporary:
        temporary.write_text(html, encoding="utf-8")
    rows = [{"benchmark": b, "method": m, **figure} for b, by_method in results.items() for m, figure in by_method.items()]
    with replacing(args.out / "results.csv") as temporary:
        pl.DataFrame(rows).write_csv(temporary)
    for half in ("base", "new"):  # a column per method, for `dvc plots`
        with replacing(args.out / f"epochs-{half}.csv") as temporary:
            epochs_table(epochs, half).write_csv(temporary, float_precision=4)
    print_table(results, titles)
    summary = {m: {k: round(results[AVERAGE][m][k], 4) for k in ("base", "new", "H")} for m in titles}
    return f"{args.out / 'report.html'}: {len(html) / 1e6:.1f} MB", summary, args.metrics


if __name__ == "__main__":
    run(main)
