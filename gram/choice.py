"""`auto`: every method on the same held-out pictures, and the simplest that is not measurably
worse than the best.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.model_selection import StratifiedKFold

from gram.methods import METHODS, titled
from gram.prompted import Seen, Task, features_of, logits_of
from gram.trust import paired_interval

# Of the paired interval: one standard error to each side, as in the rule for pruning trees. At 95%
# a few pictures per class call next to nothing measurable, and the choice would stay with what is
# simple and worse (docs/own-pictures.md).
LEVEL = 0.68


@dataclass(frozen=True)
class Choice:
    """What the folds said.

    Attributes:
        method: the one that was chosen.
        sentence: why, for a person.
        rows: one dictionary per method: method, title, accuracy (of all held-out pictures), folds
            (accuracy of each), behind (interval of what it lies behind the best, by pairs).
        logits: (n, K) of the chosen method for the held-out pictures.
    """

    method: str
    sentence: str
    rows: list[dict[str, Any]]
    logits: np.ndarray


def folds_of(labels: np.ndarray, folds: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(train, held out) positions; every picture is held out once, every class is in every
    part.
    """
    split = StratifiedKFold(folds, shuffle=True, random_state=seed)
    return list(split.split(np.zeros(len(labels)), labels))


def held_out_logits(
    task: Task,
    method: str,
    seen: Seen,
    labels: np.ndarray,
    parts: Sequence[tuple[np.ndarray, np.ndarray]],
    tick: Callable[[], Any],
) -> np.ndarray:
    """(n, K): each picture under what was learned without its fold."""
    found = np.zeros((len(labels), len(task.names)))
    for train, test in parts:
        learned = METHODS[method](task, seen[train], torch.from_numpy(labels[train]))
        found[test] = logits_of(task, learned, features_of(task, learned, seen[test]))
        tick()
    return found


def _sentence(rows: list[dict[str, Any]], chosen: dict[str, Any], best: dict[str, Any]) -> str:
    def said(row: dict[str, Any]) -> str:
        return f"{row['title']} ({100 * row['accuracy']:.1f}%)"

    if len(rows) == 1:
        return f"{said(chosen)} was asked for; nothing else was tried."
    if chosen["method"] == "zero-shot":
        return (
            f"The pictures changed nothing: {said(chosen)} is not measurably worse than the best, "
            f"{said(best)}."
            if best is not chosen
            else f"The pictures changed nothing: {said(chosen)} is the best."
        )
    if chosen is best:
        return f"{said(chosen)} is the best, and every simpler method is measurably worse."
    low, high = (100 * edge for edge in chosen["behind"])
    return (
        f"{said(chosen)} is the simplest that is not measurably worse than the best, {said(best)}: "
        f"the difference is {low:.1f} to {high:.1f} points."
    )


def choose(
    task: Task,
    methods: Sequence[str],
    seen: Seen,
    labels: np.ndarray,
    folds: int,
    tick: Callable[[], Any] = lambda: None,
) -> Choice:
    """Compares `methods`, which stand simplest first, on stratified folds.

    Args:
        labels: (n,). tick: called after every fold of every method.
    """
    parts = folds_of(labels, folds, task.seed)
    logits = {m: held_out_logits(task, m, seen, labels, parts, tick) for m in methods}
    right = {m: found.argmax(axis=1) == labels for m, found in logits.items()}
    best = max(methods, key=lambda m: right[m].sum())  # of equals the simplest
    rows: list[dict[str, Any]] = [
        {
            "method": m,
            "title": titled(m, task.start),
            "accuracy": float(right[m].mean()),
            "folds": [float(right[m][test].mean()) for _, test in parts],
            "behind": paired_interval(right[best], right[m], LEVEL, task.seed),
        }
        for m in methods
    ]
    by_name = {row["method"]: row for row in rows}
    chosen = next(row for row in rows if row["behind"][0] <= 0)
    return Choice(
        chosen["method"],
        _sentence(rows, chosen, by_name[best]),
        rows,
        logits[chosen["method"]],
    )
