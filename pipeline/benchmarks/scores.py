"""Accuracy, harmonic mean, and their spread over seeds and test pictures; nothing is rounded
here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
from scipy import stats

from pipeline.benchmarks.schemas import VERDICTS
from pipeline.errors import InputError

# `VERDICTS` of several methods; with 0 shots nothing is tuned.
RESULTS = pa.schema([("method", pa.string()), *VERDICTS])

# Share of right predictions in percent, for rows of `VERDICTS`.
TOP1 = (100 * (pl.col("label") == pl.col("predicted")).mean()).alias("top1")


def harmonic_mean(base: float, new: float) -> float:
    """H of two accuracies; 0 if both are 0."""
    return 2 * base * new / (base + new) if base + new > 0 else 0.0


def interval(differences: np.ndarray) -> tuple[float, float]:
    """Mean and half-width of the 95% interval of (n,) paired differences, by Student's t; n ≥ 2."""
    n = len(differences)
    return float(np.mean(differences)), float(
        stats.t.ppf(0.975, n - 1) * np.std(differences, ddof=1) / np.sqrt(n)
    )


class Setting(NamedTuple):
    """A method tuned on some classes of a benchmark, with any seed; with 0 shots nothing is
    tuned, and source and tuned_on are empty.
    """

    method: str
    source: str
    tuned_on: str  # base or all
    shots: int


@dataclass(frozen=True)
class Measured:
    """A figure in percent, and what is known of its spread."""

    value: float  # from the means over seeds
    per_class: float  # the same from accuracies that count every class alike
    seeds: tuple[int, ...]
    by_seed: np.ndarray  # (seeds,)
    resampled: np.ndarray  # (resamples,): from the means over seeds, with other test pictures

    @property
    def sd(self) -> float | None:
        """Sample standard deviation over seeds."""
        return float(np.std(self.by_seed, ddof=1)) if len(self.by_seed) > 1 else None

    @property
    def over_seeds(self) -> tuple[float, float] | None:
        """95% interval by Student's t over seeds."""
        if len(self.by_seed) < 2:
            return None
        half = interval(self.by_seed)[1]
        return self.value - half, self.value + half

    @property
    def over_pictures(self) -> tuple[float, float]:
        """95% percentile interval of the bootstrap over test pictures."""
        low, high = np.percentile(self.resampled, [2.5, 97.5])
        return float(low), float(high)


Part = tuple[Setting, str, str]  # run, benchmark, head

BLOCK = 2**22  # numbers of one block of resampled counts


def resampled_means(values: np.ndarray, resamples: int, stream: np.random.Generator) -> np.ndarray:
    """(n, m) values of n pictures → (resamples, m) means over n pictures drawn with replacement,
    the same ones for every column.
    """
    n, found = len(values), np.empty((resamples, values.shape[1]))
    rows = max(1, BLOCK // n)
    for start in range(0, resamples, rows):
        k = min(rows, resamples - start)
        drawn = stream.integers(n, size=(k, n)) + n * np.arange(k)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=k * n).reshape(k, n)
        found[start : start + k] = counts.astype(np.float64) @ values / n
    return found


def _verdicts(
    part: pl.DataFrame, benchmark: str, head: str
) -> tuple[pl.DataFrame, np.ndarray, np.ndarray]:
    """One head of one benchmark: rows of run and seed in order, (n,) labels, and (rows, n) whether
    they were right.

    Raises InputError if runs were judged on different pictures.
    """
    part = part.sort("method", "source", "tuned_on", "shots", "seed", "index")
    keys = part.group_by("method", "source", "tuned_on", "shots", "seed", maintain_order=True).len()
    index, labels = part["index"].to_numpy(), part["label"].to_numpy()
    n = int(keys["len"][0])
    if (
        (keys["len"] != n).any()
        or (index.reshape(-1, n) != index[:n]).any()
        or (labels.reshape(-1, n) != labels[:n]).any()
        or (np.diff(index[:n]) == 0).any()
    ):
        raise InputError(
            f"results of benchmark '{benchmark}', head '{head}': not every method and seed was "
            "judged on the same pictures, each once; delete the folders of scores and run "
            "`dvc repro`"
        )
    return keys, labels[:n], (labels == part["predicted"].to_numpy()).reshape(-1, n)


def measure(results: pl.DataFrame, resamples: int, seed: int) -> dict[Part, Measured]:
    """Accuracy of every run on every head of every benchmark that it was judged on.

    The same pictures are drawn for all runs of a head, so that differences of runs are paired;
    draws of different heads and benchmarks are independent, and depend on their names and `seed`
    alone: benchmarks may be measured one at a time.

    Args:
        results: rows of `RESULTS`. What nothing was tuned for may be there once for every source.

    Raises InputError if runs of one head were judged on different pictures.
    """
    untuned = pl.col("shots") == 0
    zero = (
        results.filter(untuned)
        .with_columns(pl.lit("").alias("source"), pl.lit("").alias("tuned_on"))
        .unique(maintain_order=True)
    )
    results = pl.concat([results.filter(~untuned), zero])
    found: dict[Part, Measured] = {}
    for (benchmark, head), part in results.partition_by("benchmark", "head", as_dict=True).items():
        keys, labels, right = _verdicts(part, benchmark, head)
        _, class_of, in_class = np.unique(labels, return_inverse=True, return_counts=True)
        rows: dict[Setting, list[int]] = {}
        for row, (*run, _, _) in enumerate(keys.iter_rows()):
            rows.setdefault(Setting(*run), []).append(row)
        means = np.stack([right[r].mean(axis=0) for r in rows.values()], axis=1)
        drawn = resampled_means(
            means, resamples, np.random.default_rng([seed, *f"{benchmark}/{head}".encode()])
        )
        for column, (run, r) in enumerate(rows.items()):
            by_seed = 100 * right[r].mean(axis=1)
            per_class = 100 * float((np.bincount(class_of, means[:, column]) / in_class).mean())
            found[run, benchmark, head] = Measured(
                float(by_seed.mean()),
                per_class,
                tuple(keys["seed"][r].to_list()),
                by_seed,
                100 * drawn[:, column],
            )
    return found


def _combined(of: Callable, parts: list[Measured]) -> Measured:
    """`of` the parts' values, seed by seed and resample by resample; what has no seeds is the
    same for each.
    """
    tuned = [set(p.seeds) for p in parts if p.seeds != (0,)]
    seeds = tuple(sorted(set.intersection(*tuned))) if tuned else (0,)
    by_seed = [
        p.by_seed[[p.seeds.index(s) for s in seeds]]
        if p.seeds != (0,)
        else np.repeat(p.by_seed, len(seeds))
        for p in parts
    ]
    return Measured(
        float(of([p.value for p in parts])),
        float(of([p.per_class for p in parts])),
        seeds,
        of(by_seed),
        of([p.resampled for p in parts]),
    )


def average(parts: list[Measured]) -> Measured:
    """Mean over benchmarks."""
    return _combined(lambda values: np.mean(values, axis=0), parts)


def harmonic(base: Measured, new: Measured) -> Measured:
    """H of the two; of averages it is the harmonic mean of the averages."""
    return _combined(
        lambda values: np.vectorize(harmonic_mean, otypes=[float])(*values), [base, new]
    )


def difference(one: Measured, other: Measured) -> Measured:
    """`one` − `other`, paired by seed and by resampled picture."""
    return _combined(lambda values: np.subtract(*values), [one, other])
