"""Writes the result page (one self-contained HTML file) and prints the table of results.

python stages/report.py --gallery … --out data/report  # see dvc.yaml for the whole line
"""

import _repository  # noqa: F401, I001 — first: it sets the import path

from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
from plotly.io import from_json
from rich.console import Console
from rich.table import Table

from pipeline.artifacts import read_json, replacing
from pipeline.benchmarks.headline import headline, rounded
from pipeline.benchmarks.params import PromptTemplate, Protocols, Seeds
from pipeline.benchmarks.protocols import HALVES, judged_on
from pipeline.benchmarks.scores import measure
from pipeline.gram.params import Methods, known_pairs
from pipeline.params import Seed, load_params
from pipeline.report import figures
from pipeline.report.formats import as_csv, as_html, as_latex, as_markdown
from pipeline.report.page import figure_html, render
from pipeline.report.params import Report
from pipeline.report.published import published
from pipeline.report.results import chance, curves_table, epochs_of, epochs_table, read_results
from pipeline.report.tables import Findings, result_tables
from pipeline.report.tables import Table as ResultTable
from pipeline.stage import output, parser, run, warn, warn_of_left_overs

READS = {
    "seed": ("seed", Seed),
    "methods": ("methods", Methods),
    "templates": ("templates", dict[str, PromptTemplate]),
    "protocols": ("protocols", dict[str, Protocols]),
    "seeds": ("few_shot.seeds", Seeds),
    "report": ("report", Report),
}
KINDS = {"out": output}
INPUTS = {
    "gallery": "JSON: the data as a person looks at it",
    "starts": "folder of starts by method",
    "benchmarks": "folder of benchmarks",
    "scores": "folder of scores by method",
    "out": "folder for report.html, tables.{csv,md,tex} and the tables of `dvc plots`",
}
# by how a benchmark was read
NOT_THE_REFERENCE = {"official": "not the reference split: made from the publisher's own lists"}

ONE_RUN = (
    "Meta-learned methods were learned once: other training tasks (meta_seed) give other figures, "
    "and intervals over few-shot seeds do not tell by how much; a study does."
)


def print_table(figures: dict[str, dict[str, float]], titles: dict[str, str]) -> None:
    """A line per method: the averages of every protocol."""
    names = list(dict.fromkeys(name for found in figures.values() for name in found))
    table = Table(title="Top-1 accuracy (%), averages over benchmarks and seeds")
    table.add_column("method", no_wrap=True)
    for name in names:
        table.add_column(name.replace("_", " "), justify="right")
    for method, found in figures.items():
        table.add_row(
            titles[method], *(f"{found[name]:.2f}" if name in found else "" for name in names)
        )
    Console().print(table)


def marks_of(benchmarks: Path, names: Iterable[str]) -> dict[str, str]:
    """What is to be said of a benchmark's split, where it is not the reference's."""
    warn_of_left_overs(benchmarks, names)
    read_as = {name: read_json(benchmarks / name / "about.json")["split"] for name in names}
    return {
        name: NOT_THE_REFERENCE[split]
        for name, split in read_as.items()
        if split in NOT_THE_REFERENCE
    }


def tables_of(results: pl.DataFrame, benchmarks: Path, p: SimpleNamespace) -> list[ResultTable]:
    """The paper's tables, over `VERDICTS` of all methods."""
    titles = p.methods.called
    findings = Findings(
        measure(results, p.report.resamples, p.seed),
        titles,
        list(p.templates),  # one for every benchmark
        p.protocols,
        published(),
        marks_of(benchmarks, p.templates),
    )
    pairs, remarks = known_pairs(p.report.pairs, titles, "report.pairs")
    for remark in remarks:
        warn(remark)
    return result_tables(findings, [(a, b) for a, b in pairs], p.report.later_methods)


def read_curves(starts: Path, methods: Methods) -> dict[str, pl.DataFrame]:
    """By method, how the starts that GRAM learned were meta-learned."""
    warn_of_left_overs(starts, methods.names)
    learned = [name for name, method in methods.meta.items() if method.algorithm == "gram"]
    return {name: pl.read_csv(starts / name / "curve.csv") for name in learned}


def meta_curves(curves: dict[str, pl.DataFrame], titles: dict[str, str]) -> list[dict[str, str]]:
    """Figures of them."""
    return [
        {
            "title": titles[name],
            "figure": figure_html(figures.meta_curve(curve), f"meta-{name}"),
            "agreement": figure_html(
                figures.agreement_curve({titles[name]: [curve]}), f"agreement-{name}"
            ),
        }
        for name, curve in curves.items()
    ]


def of_the_data(data: dict[str, Any]) -> dict[str, Any]:
    """What the page takes from the gallery."""
    return {
        "data_figures": {
            name: figure_html(from_json(figure), f"data-{name}")
            for name, figure in data["figures"].items()
            if figure
        },
        **{name: data[name] for name in ("dropped", "map_note", "cards", "topics")},
    }


def of_plots(
    epochs: pl.DataFrame, curves: dict[str, pl.DataFrame], titles: dict[str, str]
) -> dict[str, pl.DataFrame]:
    """File → for `dvc plots`, a line's name in a column, so that dvc.yaml names no method."""
    titled = {titles[name]: curve for name, curve in curves.items()}
    agreement = {"raw_agreement": ", raw", "regulated_agreement": ", regulated"}
    return {
        "loss": curves_table(titled, {"query_loss": ""}, "nats", every=10),
        "agreement": curves_table(titled, agreement, "cosine"),
        **{f"epochs-{half}": epochs_table(epochs, half, titles) for half in HALVES},
    }


def write_beside(folder: Path, tables: list[ResultTable], plotted: dict[str, pl.DataFrame]) -> None:
    """The page's tables in other formats, and those of `dvc plots`."""
    for kind, write in (("csv", as_csv), ("md", as_markdown), ("tex", as_latex)):
        with replacing(folder / f"tables.{kind}") as temporary:
            temporary.write_text(write(tables), encoding="utf-8")
    for name, table in plotted.items():
        with replacing(folder / f"{name}.csv") as temporary:
            table.write_csv(temporary, float_precision=6)


def main():
    cli = parser(__doc__)
    for name, what in INPUTS.items():
        cli.add_argument(f"--{name}", type=KINDS.get(name, Path), required=True, help=what)
    args = cli.parse_args()
    p = load_params(args.params, READS)
    titles, benchmarks = p.methods.called, judged_on(p.protocols)
    warn_of_left_overs(args.scores, titles)
    results = read_results(args.scores, p.protocols, titles)
    figures_of = {m: headline(results.filter(pl.col("method") == m), p.protocols) for m in titles}
    tables = tables_of(results, args.benchmarks, p)
    tuned_on_base = [name for name, of in p.protocols.items() if of.base_to_new]
    epochs = epochs_of(args.scores, tuned_on_base, titles)
    curves, data = read_curves(args.starts, p.methods), read_json(args.gallery)
    lead = (
        f"{len(titles)} methods on {len(benchmarks)} benchmarks; prompts "
        f"meta-learned from {data['counts']['in topics']:,} unlabelled image–text pairs "
        f"in {len(data['topics'])} topics. {ONE_RUN if p.methods.meta else ''}"
    )
    epoch_figures = [
        figure_html(figures.epoch_curves(epochs, titles, half), f"epochs-{half}")
        for half in (HALVES if len(epochs) else ())
    ]
    html = render(
        {
            "lead": lead,
            "seeds": len(p.seeds),
            "tables": as_html(tables),
            "chance": chance(args.benchmarks, benchmarks),
            "meta_curves": meta_curves(curves, titles),
            "epoch_figures": epoch_figures,
            **of_the_data(data),
        }
    )
    with replacing(args.out / "report.html") as temporary:
        temporary.write_text(html, encoding="utf-8")
    write_beside(args.out, tables, of_plots(epochs, curves, titles))
    print_table(figures_of, titles)
    words = f"{args.out / 'report.html'}: {len(html) / 1e6:.1f} MB"
    return words, {m: rounded(found) for m, found in figures_of.items()}, args.metrics


if __name__ == "__main__":
    run(main)
