"""What the report takes from the scores: every method's verdicts, headline figures and accuracy
per epoch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import polars as pl

from pipeline.benchmarks.judged import read_epochs, read_verdicts


def read_results(scores: Path, sources: Iterable[str], methods: Iterable[str]) -> pl.DataFrame:
    """`VERDICTS` of all methods, with a column `method`."""
    found = [read_verdicts(scores / m, sources).with_columns(method=pl.lit(m)) for m in methods]
    nothing = read_verdicts(scores, []).with_columns(method=pl.lit(""))
    return pl.concat([nothing, *found])


def epochs_of(scores: Path, sources: Iterable[str], methods: Iterable[str]) -> pl.DataFrame:
    """method, epoch, head, top1: mean over sources and seeds, at the largest number of shots."""
    found = [read_epochs(scores / m, sources).with_columns(method=pl.lit(m)) for m in methods]
    nothing = read_epochs(scores, []).with_columns(method=pl.lit(""))
    epochs = pl.concat([nothing, *found])
    most = epochs.filter(pl.col("shots") == pl.col("shots").max().over("method", "source"))
    return (
        most.group_by("method", "epoch", "head")
        .agg(pl.col("top1").mean())
        .sort("method", "head", "epoch")
    )


def epochs_table(epochs: pl.DataFrame, head: str, titles: Mapping[str, str]) -> pl.DataFrame:
    """epoch, line, top1 for `dvc plots`, whatever methods there are; one that learns nothing
    stays where it is. Without any base classes there are no epochs.
    """
    of_head = epochs.filter(pl.col("head") == head)
    wide = of_head.pivot("method", index="epoch", values="top1").sort("epoch")
    of_methods = wide.fill_null(strategy="forward").filter(pl.col("epoch") > 0)
    return (
        of_methods.unpivot(index="epoch", variable_name="line", value_name="top1")
        .drop_nulls()
        .with_columns(pl.col("line").replace(dict(titles)))
    )


def curves_table(
    curves: Mapping[str, pl.DataFrame], figures: Mapping[str, str], value: str, every: int = 1
) -> pl.DataFrame:
    """step, line, `value` for `dvc plots`: of every meta-learned method the steps at which a
    figure was measured.

    Args:
        curves: title → its curve. figures: column of the curve → what its line is called beside
        the title. every: steps that are averaged.
    """
    parts = [pl.DataFrame(schema={"step": pl.Int64, "line": pl.String, value: pl.Float64})]
    for title, curve in curves.items():
        parts += [
            curve.select(
                pl.col("step").cast(pl.Int64) // every * every,
                line=pl.lit(f"{title}{word}"),
                **{value: pl.col(figure).cast(pl.Float64)},
            )
            .group_by("step", "line", maintain_order=True)
            .agg(pl.col(value).mean())
            .drop_nulls()
            for figure, word in figures.items()
        ]
    return pl.concat(parts)


def chance(benchmarks: Path, names: Iterable[str]) -> dict[str, dict[str, float]]:
    """Accuracy of guessing in percent under each head of each benchmark."""
    found = {}
    for name in names:
        samples = pl.read_parquet(
            benchmarks / name / "samples.parquet", columns=["label", "half"]
        ).unique()
        found[name] = {
            head: 100 / int((samples["half"] == head).sum()) for head in ("base", "new")
        } | {"all": 100 / len(samples)}
    return found
