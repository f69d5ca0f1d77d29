"""Writes the result page (one self-contained HTML file) and prints the table of results.

python stages/report.py --pairs … --out data/report      # see dvc.yaml for the whole line
"""

import _repository  # noqa: F401, I001 — first: it sets the import path

from pathlib import Path

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
from pipeline.report.results import chance, epochs_of, epochs_table, read_results
from pipeline.report.tables import Findings, result_tables
from pipeline.stage import parser, run, warn

READS = {
    "seed": ("seed", Seed),
    "methods": ("methods", Methods),
    "templates": ("templates", dict[str, PromptTemplate]),
    "protocols": ("protocols", dict[str, Protocols]),
    "seeds": ("few_shot.seeds", Seeds),
    "report": ("report", Report),
}
# by how a benchmark was read
NOT_THE_REFERENCE = {"official": "not the reference split: made from the publisher's own lists"}


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


def main():
    cli = parser(__doc__)
    for name, what in {
        "gallery": "JSON: the data as a person looks at it",
        "starts": "folder of starts by method",
        "benchmarks": "folder of benchmarks",
        "scores": "folder of scores by method",
        "out": "folder for report.html, tables.csv, tables.md, tables.tex and epochs-<half>.csv",
    }.items():
        cli.add_argument(f"--{name}", type=Path, required=True, help=what)
    args = cli.parse_args()
    p = load_params(args.params, READS)
    titles = p.methods.called
    results = read_results(args.scores, p.protocols, titles)
    figures_of = {m: headline(results.filter(pl.col("method") == m), p.protocols) for m in titles}
    read_as = {
        name: read_json(args.benchmarks / name / "about.json")["split"]
        for name in p.templates  # one for every benchmark
    }
    marks = {
        name: NOT_THE_REFERENCE[split]
        for name, split in read_as.items()
        if split in NOT_THE_REFERENCE
    }
    findings = Findings(
        measure(results, p.report.resamples, p.seed),
        titles,
        list(p.templates),
        p.protocols,
        published(),
        marks,
    )
    pairs, remarks = known_pairs(p.report.pairs, titles, "report.pairs")
    for remark in remarks:
        warn(remark)
    tables = result_tables(findings, [(a, b) for a, b in pairs], p.report.later_methods)

    data = read_json(args.gallery)
    epochs = epochs_of(
        args.scores, [name for name, of in p.protocols.items() if of.base_to_new], titles
    )
    curves = {
        m: pl.read_csv(args.starts / m / "curve.csv")
        for m, method in p.methods.meta.items()
        if method.algorithm == "gram"
    }

    html = render(
        {
            "lead": (
                f"{len(titles)} methods on {len(judged_on(p.protocols))} benchmarks; prompts "
                f"meta-learned from {data['counts']['in topics']:,} unlabelled image–text pairs "
                f"in {len(data['topics'])} topics."
            ),
            "seeds": len(p.seeds),
            "tables": as_html(tables),
            "chance": chance(args.benchmarks, judged_on(p.protocols)),
            "data_figures": {
                name: figure_html(from_json(figure), f"data-{name}")
                for name, figure in data["figures"].items()
                if figure
            },
            **{name: data[name] for name in ("dropped", "map_note", "cards", "topics")},
            "meta_curves": [
                {
                    "title": titles[m],
                    "figure": figure_html(figures.meta_curve(curve), f"meta-{m}"),
                    "agreement": figure_html(
                        figures.agreement_curve({titles[m]: [curve]}), f"agreement-{m}"
                    ),
                }
                for m, curve in curves.items()
            ],
            "epoch_figures": [
                figure_html(figures.epoch_curves(epochs, titles, half), f"epochs-{half}")
                for half in HALVES
            ]
            if len(epochs)
            else [],
        }
    )
    with replacing(args.out / "report.html") as temporary:
        temporary.write_text(html, encoding="utf-8")
    for name, content in (
        ("csv", as_csv(tables)),
        ("md", as_markdown(tables)),
        ("tex", as_latex(tables)),
    ):
        with replacing(args.out / f"tables.{name}") as temporary:
            temporary.write_text(content, encoding="utf-8")
    for half in HALVES:  # a column per method, for `dvc plots`
        with replacing(args.out / f"epochs-{half}.csv") as temporary:
            epochs_table(epochs, half).write_csv(temporary, float_precision=4)
    print_table(figures_of, titles)
    return (
        f"{args.out / 'report.html'}: {len(html) / 1e6:.1f} MB",
        {m: rounded(found) for m, found in figures_of.items()},
        args.metrics,
    )


if __name__ == "__main__":
    run(main)
