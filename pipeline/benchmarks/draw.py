"""The few-shot draw of the reference protocol."""

from __future__ import annotations

import random
from typing import Sequence


def draw_few_shot(labels: Sequence[int], shots: int, seed: int) -> list[int]:
    """Positions of `shots` items per label (all of a label that has fewer).

    As the reference draws: `random.seed(seed)`, then label by label in order of first appearance,
    `random.sample`; over all classes, before the split into base and new.
    """
    generator = random.Random(seed)
    by_label: dict[int, list[int]] = {}
    for position, label in enumerate(labels):
        by_label.setdefault(label, []).append(position)
    drawn: list[int] = []
    for positions in by_label.values():
        drawn += generator.sample(positions, shots) if len(positions) >= shots else positions
    return drawn
