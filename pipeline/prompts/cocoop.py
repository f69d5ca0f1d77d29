"""CoCoOp: CoOp whose context is shifted for every picture by a small net on the picture's
feature.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.clip.backbone import Backbone
from pipeline.clip.blocks import in_parts
from pipeline.clip.text import TEXTS_AT_ONCE
from pipeline.errors import InputError
from pipeline.prompts.base import NamedClasses, TextContext, Tokens, linear, linear_rows, repeated

SHRINK = 16  # the net's hidden layer is e / 16


class CoCoOp(TextContext):
    def __init__(
        self, backbone: Backbone, template: str = "a photo of a {}.", depth: int = 1
    ) -> None:
        if depth > 1:
            raise InputError(
                f"'depth' is {depth}, but cocoop learns tokens at the text tower's input only; "
                "leave it at 1"
            )
        super().__init__(backbone, template, depth)

    def initial(self, count, generator, words=None) -> Tokens:
        d, e = self.backbone.text.width, self.backbone.dim
        hidden = max(1, e // SHRINK)
        device = self.backbone.device
        return {
            "text": self.initial_text(count, generator, words),
            "net_in": linear_rows(hidden, e, generator, device),
            "net_out": linear_rows(d, hidden, generator, device),
        }

    def head(self, tokens: Tokens, classes: NamedClasses) -> NamedClasses:
        return classes

    def scores(self, tokens: Tokens, head: NamedClasses, seen: Tensor) -> Tensor:
        """Every picture has a context, and so text features, of its own; so many are computed at
        once as there is memory for.
        """
        T, K = head.shape
        head.require_room(tokens["text"].shape[1])
        return in_parts(
            lambda part: self._scores(tokens, head, part),
            max(1, TEXTS_AT_ONCE // (T * K)),
            seen,
            dim=1,
        )

    def _scores(self, tokens: Tokens, head: NamedClasses, seen: Tensor) -> Tensor:
        (T, K), n = head.shape, seen.shape[1]
        shift = linear(torch.relu(linear(seen, tokens["net_in"])), tokens["net_out"])  # (T, n, d)
        context = (tokens["text"].unsqueeze(1) + shift.unsqueeze(2)).flatten(0, 1)  # (T·n, M, d)
        pieces = head.pieces
        per_picture = type(pieces)(
            *(
                repeated(part.unflatten(0, (T, K)), n).flatten(0, 1)
                for part in (pieces.start, pieces.rest, pieces.end)
            )
        )
        text = self.backbone.text.features(per_picture, repeated(context, K)).view(T, n, K, -1)
        return self.backbone.logit_scale * (text @ seen.unsqueeze(-1)).squeeze(-1)
