"""CoCoOp: CoOp whose context is shifted for every picture by a small net on the picture's feature."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.clip.backbone import Backbone
from pipeline.errors import InputError
from pipeline.prompts.base import NamedClasses, TextContext, Tokens, repeated, words_or_random

SHRINK = 16  # the net's hidden layer is e / 16


def _uniform_rows(rows: int, inputs: int, generator: torch.Generator) -> Tensor:
    """(rows, inputs + 1): weights and, as the last column, bias, each uniform within ±1/√inputs (torch's Linear)."""
    return (torch.rand(rows, inputs + 1, generator=generator) * 2 - 1) * inputs**-0.5


def _linear(x: Tensor, rows: Tensor) -> Tensor:
    """(T, n, i) through each task's (T, o, i + 1) weights and bias → (T, n, o)."""
    return x @ rows[..., :-1].transpose(-1, -2) + rows[..., -1].unsqueeze(-2)


class CoCoOp(TextContext):
    def __init__(self, backbone: Backbone, template: str = "a photo of a {}.", depth: int = 1) -> None:
        if depth > 1:
            raise InputError(f"'depth' is {depth}, but cocoop learns tokens at the text tower's input only; leave it at 1")
        super().__init__(backbone, template, depth)

    def initial(self, count, generator, words=None) -> Tokens:
        d, e = self.backbone.text.width, self.backbone.dim
        hidden = max(1, e // SHRINK)
        device = self.backbone.device
        return {
            "text": words_or_random(self.backbone, count, generator, words),
            "net_in": _uniform_rows(hidden, e, generator).to(device),
            "net_out": _uniform_rows(d, hidden, generator).to(device),
        }

    def head(self, tokens: Tokens, classes: NamedClasses) -> NamedClasses:
        return classes

    def scores(self, tokens: Tokens, head: NamedClasses, seen: Tensor) -> Tensor:
        """Every picture has a context, and so text features, of its own."""
        (T, K), n = head.shape, seen.shape[1]
        shift = _linear(torch.relu(_linear(seen, tokens["net_in"])), tokens["net_out"])  # (T, n, d)
        context = (tokens["text"].unsqueeze(1) + shift.unsqueeze(2)).flatten(0, 1)  # (T·n, M, d)
        pieces = head.pieces
        per_picture = type(pieces)(*(repeated(part.unflatten(0, (T, K)), n).flatten(0, 1) for part in (pieces.start, pieces.rest, pieces.end)))
        text = self.backbone.text.features(per_picture, repeated(context, K)).view(T, n, K, -1)
        return self.backbone.logit_scale * (text @ seen.unsqueeze(-1)).squeeze(-1)
