"""The interface that meta-training, tuning and evaluation know prompts by."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Sequence

import torch
from torch import Tensor

from pipeline.clip.backbone import Backbone

# A prompt's learned tokens by modality: {"text": (T, M, d)}, with one set of M tokens for each of T tasks.
Tokens = dict[str, Tensor]


class PromptMethod(ABC):
    """One way of putting soft tokens into a frozen CLIP.

    Everything is batched over T tasks: the same call serves a batch of meta-training tasks (each with
    its own adapted tokens) and one dataset (T = 1).
    """

    def __init__(self, backbone: Backbone, template: str = "a photo of a {}.") -> None:
        """`template` is the benchmark's hand-written prompt; learned prompts have no use for it."""
        self.backbone = backbone
        self.template = template

    @abstractmethod
    def initial(self, count: int, generator: torch.Generator) -> Tokens:
        """The starting tokens without the task dimension: {modality: (M, d)}; {} if nothing is learned."""

    @abstractmethod
    def prepare(self, tasks: Sequence[Sequence[str]]) -> Any:
        """What can be computed once from the class names of T tasks with K classes each."""

    @abstractmethod
    def text_features(self, tokens: Tokens, classes: Any) -> Tensor:
        """(T, K, e) L2-normalised features of the prompted classes."""

    def logits(self, tokens: Tokens, classes: Any, images: Tensor) -> Tensor:
        """Eq 1 with the backbone's own logit scale: (T, n, e) image features → (T, n, K) logits."""
        scale = self.backbone.model.logit_scale.exp()
        return scale * images @ self.text_features(tokens, classes).transpose(-1, -2)
