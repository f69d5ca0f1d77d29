"""Which activation a backbone's weights were trained with, as far as labelled pictures tell.

The weights themselves do not: those of QuickGELU load where the config says GELU, and the other way
round, and what is computed is another thing without a word.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import comb
from typing import Any

import numpy as np
from open_clip.transformer import (
    CustomResidualAttentionBlock,
    QuickGELU,
    ResidualAttentionBlock,
)
from PIL import Image
from torch import nn

from pipeline.clip.backbone import Backbone, image_features, text_features

# Fewer pictures seldom differ in a tenth of them; more cost more than the answer is worth.
LEAST, MOST = 50, 200
LEVEL = 0.05  # one-sided, of the sign test


def _mlps(model: nn.Module) -> list[Any]:
    """The parts that `quick_gelu` of a config changes: timm's and Hugging Face's towers have none,
    nor has a GELU of a config's own kind.
    """
    found = [
        block.mlp
        for block in model.modules()
        if isinstance(block, (ResidualAttentionBlock, CustomResidualAttentionBlock))
    ]
    return [
        mlp
        for mlp in found
        if isinstance(mlp.gelu, QuickGELU) or getattr(mlp.gelu, "approximate", "") == "none"
    ]


@contextmanager
def other_activation(model: nn.Module) -> Iterator[None]:
    """Within it, the model computes with QuickGELU instead of GELU, or the other way round."""
    kept = [(mlp, mlp.gelu) for mlp in _mlps(model)]
    try:
        for mlp, own in kept:
            mlp.gelu = nn.GELU() if isinstance(own, QuickGELU) else QuickGELU()
        yield
    finally:
        for mlp, own in kept:
            mlp.gelu = own


def measurably(worse: int, better: int) -> bool:
    """Whether a method that alone is right `better` times beats one that alone is right `worse`
    times, by the exact sign test of one side (McNemar's).
    """
    count = worse + better
    return sum(comb(count, k) for k in range(better, count + 1)) <= LEVEL * 2**count


def compare_activations(
    backbone: Backbone,
    opened: Callable[[int], Image.Image],
    labels: Sequence[str],
    prompt: Callable[[str], str],
) -> str | None:
    """Words that name the other activation, if the hand-written prompt is measurably more often
    right with it; None if it is not, or there are too few pictures or no such activation.

    At most `MOST` pictures, spread evenly over all, and the names of their classes alone, pass
    through each tower twice.

    Args:
        opened: a row's picture. labels: n class names. prompt: a class name's prompt.
    """
    mlps = _mlps(backbone.model)
    if len(labels) < LEAST or not mlps:
        return None
    rows = np.unique(np.linspace(0, len(labels) - 1, MOST).round().astype(int))
    names, truth = np.unique([labels[row] for row in rows], return_inverse=True)
    views = [backbone.test_view(opened(int(row))) for row in rows]
    texts = [prompt(str(name)) for name in names]

    def right() -> np.ndarray:
        found = image_features(backbone, views, 64) @ text_features(backbone, texts, 64).T
        return found.argmax(dim=1).numpy() == truth

    own = right()
    with other_activation(backbone.model):
        other = right()
    if not measurably(int((own & ~other).sum()), int((other & ~own).sum())):
        return None
    quick = isinstance(mlps[0].gelu, QuickGELU)
    said, wanted = ("QuickGELU", "GELU") if quick else ("GELU", "QuickGELU")
    return (
        f"its config says {said}, but its weights seem to have been trained with {wanted}: the "
        f"hand-written prompt is right on {own.sum()} of {len(rows)} pictures as it is, and on "
        f"{other.sum()} with \"quick_gelu\": {'false' if quick else 'true'} in 'model_cfg' of "
        "open_clip_config.json"
    )
