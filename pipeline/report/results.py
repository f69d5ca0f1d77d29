"""The result table's numbers, from the per-picture scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from pipeline.artifacts import read_table
from pipeline.benchmarks.schemas import SCORES
from pipeline.benchmarks.scores import accuracy_by_seed, summarise
from pipeline.errors import InputError

AVERAGE = "average"


def read_results(scores: Path, benchmarks: list[str], methods: dict[str, str]) -> dict[str, dict[str, dict[str, float]]]:
    """{benchmark: {method: summary}}, with the row `average` last.

    The average row is the mean of the benchmarks' accuracies, seed by seed; its H is the harmonic mean
    of the averaged base and new, not the average of H (as in the literature).

    Raises InputError if a pair of benchmark and method has no scores.
    """
    table: dict[str, dict[str, dict[str, float]]] = {b: {} for b in benchmarks}
    averages: dict[str, dict[str, float]] = {}
    for method in methods:
        halves = {"base": [], "new": []}
        for benchmark in benchmarks:
            path = scores / benchmark / method / "scores.parquet"
            if not path.is_file():
                raise InputError(f"{path}: missing; `dvc repro` makes it")
            by_half = accuracy_by_seed(pl.from_arrow(read_table(path, SCORES)))
            table[benchmark][method] = summarise(by_half["base"], by_half["new"])
            for half, values in by_half.items():
                halves[half].append(values)
        averages[method] = summarise(*(np.mean(halves[h], axis=0) for h in ("base", "new")))
    return table | {AVERAGE: averages}


def read_epochs(scores: Path, benchmarks: list[str], methods: dict[str, str]) -> pl.DataFrame:
    """method, epoch, half, top1: mean over benchmarks and seeds after each epoch of tuning."""
    parts = [pl.read_csv(scores / b / m / "epochs.csv").with_columns(method=pl.lit(m)) for m in methods for b in benchmarks]
    return pl.concat(parts).group_by("method", "epoch", "half").agg(pl.col("top1").mean()).sort("method", "half", "epoch")


def epochs_table(epochs: pl.DataFrame, half: str) -> pl.DataFrame:
    """One row per epoch, a column of accuracies per method; a method that learns nothing stays where it is."""
    wide = epochs.filter(pl.col("half") == half).pivot("method", index="epoch", values="top1").sort("epoch")
    return wide.fill_null(strategy="forward").filter(pl.col("epoch") > 0)


def chance(benchmarks: Path, names: list[str]) -> dict[str, tuple[float, float]]:
    """Accuracy of guessing in percent, base and new, per benchmark and on average."""
    found = {}
    for name in names:
        samples = pl.read_parquet(benchmarks / name / "samples.parquet", columns=["label", "half"]).unique()
        found[name] = tuple(100 / int((samples["half"] == half).sum()) for half in ("base", "new"))
    return found | {AVERAGE: tuple(np.mean(list(found.values()), axis=0))}
