"""Puts a study's runs side by side: means over seeds, paired differences with intervals, one page
of plots.

    python stages/compare.py --runs data/study/runs --out data/study/report
"""

import _repository  # noqa: F401, I001 — first: it sets the import path

from pathlib import Path

import polars as pl
from rich.console import Console
from rich.table import Table

from pipeline.artifacts import replacing
from pipeline.benchmarks.headline import headline
from pipeline.benchmarks.judged import read_epochs, read_verdicts
from pipeline.benchmarks.scores import interval
from pipeline.errors import InputError
from pipeline.gram.params import Study, known_pairs
from pipeline.params import load_params
from pipeline.report import figures
from pipeline.report.formats import as_csv, as_html
from pipeline.report.page import figure_html, render
from pipeline.report.published import published
from pipeline.report.tables import study_tables
from pipeline.stage import output, parser, run, warn, warn_of_left_overs

READS = {"study": ("study", Study)}
FIGURES = ("base", "new", "H")


def read_runs(folder: Path, study: Study) -> tuple[pl.DataFrame, pl.DataFrame]:
    """method, seed, `FIGURES` (means over few-shot draws) and their variances over these draws
    (`<figure>_draws`, null for one draw) of every run; and method, epoch, head, top1, averaged over
    seeds, of the draws that were judged after every epoch.

    Raises InputError if a run is missing.
    """
    found, epochs = [], []
    warn_of_left_overs(folder, study.methods.called)
    for method in study.methods.called:
        warn_of_left_overs(folder / method, map(str, study.seeds))
        for seed in study.seeds:
            run_folder = folder / method / str(seed)
            if not run_folder.is_dir():
                raise InputError(f"{run_folder}: missing; `make study` makes it")
            judged = read_verdicts(run_folder, study.benchmarks)
            spread = variances(judged)
            found.append({"method": method, "seed": seed, **headline(judged, {}), **spread})
            of_run = read_epochs(run_folder, study.benchmarks)
            judged_after = pl.len().over("source", "head", "seed")
            whole = of_run.filter(judged_after == judged_after.max())
            epochs.append(whole.with_columns(method=pl.lit(method)))
    by_epoch = pl.concat(epochs).group_by("method", "epoch", "head").agg(pl.col("top1").mean())
    return pl.DataFrame(found), by_epoch.sort("method", "head", "epoch")


def variances(judged: pl.DataFrame) -> dict[str, float | None]:
    """Of a run's `FIGURES` over its few-shot draws."""
    parts = judged.partition_by("seed", maintain_order=True)
    of_draws = pl.DataFrame([headline(of_draw, {}) for of_draw in parts])
    return {f"{k}_draws": of_draws[k].var() for k in FIGURES}


def method_rows(runs: pl.DataFrame, titles: dict[str, str]) -> list[dict]:
    """Mean of every method, its standard deviation over seeds, and that over few-shot draws within
    a seed (null for one draw).
    """
    rows = []
    for method, title in titles.items():
        of_method = runs.filter(pl.col("method") == method)
        spread = {f"{k}_sd": of_method[k].std() for k in FIGURES}
        for k in FIGURES:
            within = of_method[f"{k}_draws"].mean()
            spread[f"{k}_draws_sd"] = None if within is None else within**0.5
        rows.append(
            {
                "method": method,
                "title": title,
                "runs": len(of_method),
                **{k: of_method[k].mean() for k in FIGURES},
                **spread,
            }
        )
    return rows


def pair_rows(runs: pl.DataFrame, pairs: list[list[str]], titles: dict[str, str]) -> list[dict]:
    """Difference seed by seed of every pair: mean, and half-width of its 95% interval."""
    rows = []
    for one, other in pairs:
        both = runs.filter(pl.col("method") == one).join(
            runs.filter(pl.col("method") == other), on="seed", suffix="_other"
        )
        row = {
            "pair": f"{one} − {other}",
            "title": f"{titles[one]} − {titles[other]}",
            "runs": len(both),
        }
        for k in FIGURES:
            row[k], row[f"{k}_ci"] = interval((both[k] - both[f"{k}_other"]).to_numpy())
        rows.append(row)
    return rows


def print_rows(title: str, rows: list[dict], spread: str, form: str) -> None:
    table = Table(title=title)
    table.add_column("")  # long titles wrap, figures do not
    for name in FIGURES:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        cells = [f"{row[k]:{form}} ± {row[f'{k}_{spread}']:.2f}" for k in FIGURES]
        within = [row.get(f"{k}_draws_sd") for k in FIGURES]
        shown = ["" if sd is None else f" ({sd:.2f})" for sd in within]
        table.add_row(row["title"], *map("".join, zip(cells, shown, strict=True)))
    Console().print(table)


def plots_of(
    folder: Path, study: Study, runs: pl.DataFrame, by_epoch: pl.DataFrame
) -> dict[str, str | list[str]]:
    """The page's figures: every run, accuracy by epoch, and agreement during meta-training."""
    titles = study.methods.called
    regulated = [
        n
        for n, m in study.methods.meta.items()
        if m.algorithm == "gram" and m.regulator == "affine"
    ]
    curves = {
        titles[n]: [pl.read_csv(folder / n / str(seed) / "curve.csv") for seed in study.seeds]
        for n in regulated
    }
    return {
        "dots": [
            figure_html(figures.runs_by_method(runs, titles, k), f"runs-{k}")
            for k in ("base", "new")
        ],
        "epochs": [
            figure_html(figures.epoch_curves(by_epoch, titles, half), f"epochs-{half}")
            for half in ("base", "new")
        ],
        "agreement": figure_html(figures.agreement_curve(curves), "agreement"),
        "inner": figure_html(figures.agreement_curve(curves, normalised=False), "inner"),
    }


def main():
    cli = parser(__doc__)
    cli.add_argument("--runs", type=Path, required=True, help="folder of runs by method and seed")
    cli.add_argument(
        "--out",
        type=output,
        required=True,
        help="folder for study.html, methods.csv, pairs.csv, runs.csv and tables.csv",
    )
    args = cli.parse_args()
    p = load_params(args.params, READS)
    titles, sources = p.study.methods.called, p.study.benchmarks
    runs, by_epoch = read_runs(args.runs, p.study)
    compared, remarks = known_pairs(p.study.pairs, titles, "study.pairs")
    for remark in remarks:
        warn(remark)
    rows, pairs = method_rows(runs, titles), pair_rows(runs, compared, titles)
    tables = study_tables(rows, sources, published())
    lead = (
        f"{len(titles)} methods, {len(p.study.seeds)} seeds, {p.study.shots} shots of "
        f"the base classes of {', '.join(sources)}."
    )
    shown = {"lead": lead, "methods": rows, "pairs": pairs, "tables": as_html(tables)}
    html = render(shown | plots_of(args.runs, p.study, runs, by_epoch), "study")
    for name, content in (
        ("study.html", html),
        ("methods.csv", pl.DataFrame(rows).write_csv()),
        ("pairs.csv", pl.DataFrame(pairs).write_csv()),
        ("runs.csv", runs.write_csv()),
        ("tables.csv", as_csv(tables)),
    ):
        with replacing(args.out / name) as temporary:
            temporary.write_text(content, encoding="utf-8")
    average = "Average over benchmarks (%), mean ± standard deviation over seeds (over draws)"
    print_rows(average, rows, "sd", ".2f")
    print_rows("Paired differences (points), mean ± 95% interval", pairs, "ci", "+.2f")
    metrics = {
        row["pair"].replace(" − ", "-"): {k: round(row[k], 4) for k in FIGURES} for row in pairs
    }
    return f"{args.out / 'study.html'}: {len(runs)} runs", metrics, args.metrics


if __name__ == "__main__":
    run(main)
