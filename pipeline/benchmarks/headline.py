"""A method in a few figures: averages over the sources and targets of each protocol, at its
largest number of shots.
"""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from pipeline.benchmarks.params import Protocols
from pipeline.benchmarks.protocols import TRANSFERS, few_shot_alone, targets_of
from pipeline.benchmarks.scores import TOP1, harmonic_mean


def headline(verdicts: pl.DataFrame, protocols: Mapping[str, Protocols]) -> dict[str, float]:
    """base, new, H, all_classes, cross_domain, cross_dataset in percent, those that there are; mean
    over seeds, then over benchmarks. all_classes is of the sources that have no targets.

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
    if (base := figures["base"]) is not None and (new := figures["new"]) is not None:
        figures["H"] = harmonic_mean(base, new)
    judged = {"all_classes": [(name, name) for name in few_shot_alone(protocols)]} | {
        kind: [
            (name, target)
            for name, of_source in protocols.items()
            for target in targets_of(name, of_source, kind)
        ]
        for kind in TRANSFERS
    }
    at = pl.struct("source", "benchmark")
    for kind, pairs in judged.items():
        wanted = [at == pl.struct(source=pl.lit(s), benchmark=pl.lit(b)) for s, b in pairs]
        figures[kind] = (
            mean(pl.col("tuned_on") == "all", pl.any_horizontal(wanted)) if wanted else None
        )
    return {name: value for name, value in figures.items() if value is not None}


def in_words(figures: dict[str, float]) -> str:
    if not figures:
        return "nothing was judged"
    return (
        ", ".join(f"{name.replace('_', '-')} {value:.2f}" for name, value in figures.items())
        + " (%)"
    )


def rounded(figures: dict[str, float]) -> dict[str, float]:
    """As metrics files show them."""
    return {name: round(value, 4) for name, value in figures.items()}
