"""The hand-written prompt: zero-shot CLIP. It learns nothing."""

from __future__ import annotations

from typing import Sequence

import torch
from torch import Tensor

from pipeline.clip.backbone import text_features
from pipeline.prompts.base import PromptMethod, Tokens


class Template(PromptMethod):
    def initial(self, count: int, generator: torch.Generator) -> Tokens:
        return {}

    def prepare(self, tasks: Sequence[Sequence[str]]) -> Tensor:
        texts = [self.template.format(name) for names in tasks for name in names]
        features = text_features(self.backbone, texts).to(self.backbone.device)
        return features.reshape(len(tasks), -1, features.shape[-1])

    def text_features(self, tokens: Tokens, classes: Tensor) -> Tensor:
        return classes
