"""Hand-written prompts: zero-shot CLIP. It learns nothing, so it is none of `METHODS`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.clip.backbone import Backbone
from pipeline.prompts.base import FixedText, Tokens


class Template(FixedText):
    """One template, or an ensemble of them: the normalised mean of their text features."""

    def __init__(self, backbone: Backbone, templates: Sequence[str]) -> None:
        super().__init__(backbone, templates[0])
        self.templates = templates

    def initial(self, count, generator, words=None) -> Tokens:
        return {}

    def prepare(self, tasks: Sequence[Sequence[str]]) -> Tensor:
        if len(self.templates) == 1:
            return super().prepare(tasks)
        return F.normalize(
            torch.stack([self.filled(template, tasks) for template in self.templates]).mean(dim=0),
            dim=-1,
        )
