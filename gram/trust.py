"""How far a probability can be trusted: temperature, calibration error, prediction sets, and
intervals. All of it is measured on pictures that were held out.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

RESAMPLES = 2000
BINS = 10


def temperature_of(logits: np.ndarray, labels: np.ndarray) -> float:
    """The divisor of (n, K) logits under which (n,) labels are likeliest, within 1/50 and 50."""
    rows = np.arange(len(labels))

    def loss(log_t: float) -> float:
        return -float(log_softmax(logits / math.exp(log_t), axis=1)[rows, labels].mean())

    bound = math.log(50)
    return math.exp(minimize_scalar(loss, bounds=(-bound, bound), method="bounded").x)


def chances(logits: np.ndarray, temperature: float) -> np.ndarray:
    """(n, K) probabilities, float64."""
    return softmax(logits.astype(np.float64) / temperature, axis=1)


def calibration(probabilities: np.ndarray, labels: np.ndarray) -> list[dict[str, float]]:
    """For each tenth of confidence that occurs: pictures, mean confidence, share that is right."""
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    return [
        {
            "pictures": int((bins == b).sum()),
            "confidence": float(confidence[bins == b].mean()),
            "accuracy": float(right[bins == b].mean()),
        }
        for b in range(BINS)
        if (bins == b).any()
    ]


def calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Expected calibration error: mean over pictures of |confidence − accuracy| of their bin."""
    found = calibration(probabilities, labels)
    return sum(b["pictures"] * abs(b["confidence"] - b["accuracy"]) for b in found) / len(labels)


def nonconformity(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(n,) one minus the truth's probability, sorted: what `set_threshold` needs."""
    return np.sort(1 - probabilities[np.arange(len(labels)), labels])


def set_threshold(scores: np.ndarray, coverage: float) -> float:
    """The ⌈(n + 1) · coverage⌉-th smallest of n sorted scores (split conformal prediction); 1, so
    that every class is in every set, where n is too small for the coverage.
    """
    rank = math.ceil((len(scores) + 1) * coverage - 1e-9)
    return 1.0 if rank > len(scores) else float(scores[rank - 1])


def sets(probabilities: np.ndarray, threshold: float) -> np.ndarray:
    """(n, K) bool: the classes of each picture's prediction set; it may be empty."""
    return 1 - probabilities <= threshold


def paired_interval(
    better: np.ndarray, worse: np.ndarray, level: float, seed: int
) -> tuple[float, float]:
    """Percentile interval of the difference of two accuracies on the same n pictures."""
    difference = better.astype(np.float64) - worse
    drawn = np.random.default_rng(seed).integers(len(difference), size=(RESAMPLES, len(difference)))
    tail = (1 - level) / 2
    low, high = np.quantile(difference[drawn].mean(axis=1), [tail, 1 - tail])
    return float(low), float(high)


def share_interval(right: int, of: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's 95% interval of a share."""
    if not of:
        return 0.0, 1.0
    p, n = right / of, of
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)
    return max(0.0, min(low, p)), min(1.0, max(high, p))  # rounding does not leave the share out
