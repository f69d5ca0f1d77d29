"""The few-shot draw of the reference protocol."""

from __future__ import annotations

import random
from collections.abc import Sequence

VAL_SHOTS = 4  # per class, at most


def _draw(labels: Sequence[int], shots: int, generator: random.Random) -> list[int]:
    by_label: dict[int, list[int]] = {}
    for position, label in enumerate(labels):
        by_label.setdefault(label, []).append(position)
    drawn: list[int] = []
    for positions in by_label.values():
        drawn += generator.sample(positions, shots) if len(positions) >= shots else positions
    return drawn


def draw_few_shot(labels: Sequence[int], shots: int, seed: int) -> list[int]:
    """Positions of `shots` items per label (all of a label that has fewer).

    As the reference draws: `random.seed(seed)`, then label by label in order of first appearance,
    `random.sample`; over all classes, before the split into base and new.
    """
    return _draw(labels, shots, random.Random(seed))


def draw_train_and_val(
    train: Sequence[int], val: Sequence[int], shots: int, seed: int
) -> tuple[list[int], list[int]]:
    """`draw_few_shot` of the labels `train`; then, from the same random stream, at most
    `VAL_SHOTS` per label of `val`.
    """
    generator = random.Random(seed)
    return _draw(train, shots, generator), _draw(val, min(shots, VAL_SHOTS), generator)
