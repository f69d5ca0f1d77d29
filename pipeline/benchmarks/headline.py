"""A method in five figures: averages over the sources and targets of each protocol, at its
largest number of shots.
"""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from pipeline.benchmarks.params import Protocols
from pipeline.benchmarks.scores import TOP1, harmonic_mean


def headline(verdicts: pl.DataFrame, protocols: Mapping[str, Protocols]) -> dict[str, float]:
    """base, new, H, cross_domain, cross_dataset in percent, those that there are; mean over seeds,
    then over benchmarks.

    Args:
        verdicts: one method's rows of `VERDICTS`.
    """
    accuracy = verdicts.group_by("source", "tuned_on", "shots", "seed", "benchmark", "head").agg(
        TOP1
    )
    most = accuracy.filter(pl.col("shots") == pl.col("shots").max().over("source", "tuned_on"))
    found = most.group_by("source", "tuned_on", "benchmark", "head").agg(pl.col("top1").mean())

    def mean(*tests: pl.Expr) -> float | None:
        return found.filter(*tests)["top1"].mean()

    figures = {
        half: mean(pl.col("tuned_on") == "base", pl.col("head") == half) for half in ("base", "new")
    }
    if None not in figures.values():
        figures["H"] = harmonic_mean(figures["base"], figures["new"])
    for kind in ("cross_domain", "cross_dataset"):
        pairs = [
            pl.struct(source=pl.lit(name), benchmark=pl.lit(target))
            for name, of_source in protocols.items()
            for target in getattr(of_source, kind)
        ]
        figures[kind] = (
            mean(
                pl.col("tuned_on") == "all",
                pl.any_horizontal(pl.struct("source", "benchmark") == pair for pair in pairs),
            )
            if pairs
            else None
        )
    return {name: value for name, value in figures.items() if value is not None}


def in_words(figures: dict[str, float]) -> str:
    return (
        ", ".join(f"{name.replace('_', '-')} {value:.2f}" for name, value in figures.items())
        + " (%)"
    )


def rounded(figures: dict[str, float]) -> dict[str, float]:
    """As metrics files show them."""
    return {name: round(value, 4) for name, value in figures.items()}
