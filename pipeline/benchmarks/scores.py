"""Accuracy, harmonic mean, and their spread over seeds; nothing is rounded here."""

from __future__ import annotations

import numpy as np
import polars as pl
from scipy import stats

# Share of right predictions in percent, for rows of `SCORES`.
TOP1 = (100 * (pl.col("label") == pl.col("predicted")).mean()).alias("top1")


def harmonic_mean(base: float, new: float) -> float:
    """H of two accuracies; 0 if both are 0."""
    return 2 * base * new / (base + new) if base + new > 0 else 0.0


def accuracy_by_seed(scores: pl.DataFrame) -> dict[str, np.ndarray]:
    """Top-1 over all test pictures of a half, in percent: {half: (seeds,)}, seeds in ascending order."""
    table = scores.group_by("seed", "half").agg(TOP1).sort("seed")
    return {half: table.filter(pl.col("half") == half)["top1"].to_numpy() for half in ("base", "new")}


def summarise(base: np.ndarray, new: np.ndarray) -> dict[str, float]:
    """Means over seeds, H of the means, and the sample standard deviations over seeds (0 for one seed)."""
    sd = [float(np.std(v, ddof=1)) if len(v) > 1 else 0.0 for v in (base, new, [harmonic_mean(b, n) for b, n in zip(base, new)])]
    mean = float(np.mean(base)), float(np.mean(new))
    return {"base": mean[0], "new": mean[1], "H": harmonic_mean(*mean), "base_sd": sd[0], "new_sd": sd[1], "H_sd": sd[2], "seeds": len(base)}


def averages(scores: pl.DataFrame) -> dict[str, float]:
    """One run on several benchmarks (rows of `STUDY_SCORES`): mean base and new top-1 in percent, and their H."""
    table = scores.group_by("benchmark", "half").agg(TOP1)
    base, new = (float(table.filter(pl.col("half") == half)["top1"].mean()) for half in ("base", "new"))
    return {"base": base, "new": new, "H": harmonic_mean(base, new)}


def interval(differences: np.ndarray) -> tuple[float, float]:
    """Mean and half-width of the 95% interval of (n,) paired differences, by Student's t; n ≥ 2."""
    n = len(differences)
    return float(np.mean(differences)), float(stats.t.ppf(0.975, n - 1) * np.std(differences, ddof=1) / np.sqrt(n))
