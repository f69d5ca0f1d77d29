"""What was learned, and how pictures and class names are seen through it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from gram.looking import test_features
from pipeline.clip.backbone import Backbone
from pipeline.prompts.base import PromptMethod, Tokens, placed
from pipeline.prompts.starts import Start, method_of
from pipeline.prompts.template import Template

About = dict[str, str]  # kind and depth of a prompt (`Start.about`)


@dataclass(frozen=True)
class Task:
    """What every method starts from."""

    backbone: Backbone
    names: tuple[str, ...]
    template: str
    start: Start | None
    seed: int

    @cached_property
    def zero_shot(self) -> Learned:
        """The hand-written prompt; its texts are encoded once."""
        return learned_by(self, None, {})

    @cached_property
    def started(self) -> Learned:
        """The meta-learned start, untuned."""
        assert self.start is not None, "`gram.methods.known` has asked for it"
        return learned_by(self, self.start.about, self.start.theta)


@dataclass(frozen=True)
class Seen:
    """n pictures: (n, 1 + views, e) features of their centres and augmented views, and how to open
    them again, for those who need pixels.
    """

    features: Tensor
    opened: Callable[[int], Image.Image]

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, rows: np.ndarray) -> Seen:
        return Seen(self.features[rows], lambda i: self.opened(int(rows[i])))


@dataclass(frozen=True)
class Learned:
    """What a method made of the pictures.

    Attributes:
        matrix: W (K, e), logits are scale · f Wᵀ; None where the prompt makes another one for
            every picture.
        tokens: θ {name: (rows, d)}, on the CPU; {} where no prompt was learned.
        about: which prompt they are of; None where none was learned.
        trust: what the prompt's rows are multiplied by in W, and would be for names to come.
    """

    matrix: Tensor | None
    tokens: Tokens
    about: About | None
    trust: float = 1.0


class PromptedTower(nn.Module):
    """An image tower with learned tokens beside the patches, in an image tower's place."""

    def __init__(self, method: PromptMethod, tokens: Tokens) -> None:
        super().__init__()
        self.method = method
        for name, rows in placed(tokens, method.backbone.device).items():
            self.register_buffer(name, rows)

    def forward(self, pixels: Tensor) -> Tensor:
        """(n, 3, h, w) → (n, e), L2-normalised."""
        seen = self.method.look(pixels.unsqueeze(0))
        return self.method.image_features(dict(self.named_buffers()), seen)[0]

    def encode_image(self, pixels: Tensor, normalize: bool = True) -> Tensor:
        """As open_clip's models do it."""
        return F.normalize(self(pixels), dim=-1) if normalize else self(pixels)


def prompt_of(task: Task, about: About | None) -> PromptMethod:
    """The prompt method that learned, or the hand-written one."""
    if about is None:
        return Template(task.backbone, [task.template])
    return method_of(about, task.backbone, task.template)


def sight_of(task: Task, about: About | None, tokens: Tokens) -> Backbone:
    """The backbone as pictures pass through it: with visual tokens where there are any."""
    method = prompt_of(task, about)
    if not method.sees_pixels:
        return task.backbone
    return replace(task.backbone, model=PromptedTower(method, tokens).eval())


def context_of(about: About | None, tokens: Tokens) -> int:
    """Learned tokens that stand before a class's name."""
    return len(tokens["text"]) // int(about["depth"]) if about and "text" in tokens else 0


def class_matrix(task: Task, about: About | None, tokens: Tokens) -> Tensor | None:
    """(K, e) text features of the prompted classes, on the CPU; None if they depend on the
    picture.
    """
    method, there = prompt_of(task, about), placed(tokens, task.backbone.device)
    with torch.inference_mode():
        head = method.head(there, method.prepare([list(task.names)]))
        return head[0].float().cpu().clone() if isinstance(head, Tensor) else None


def learned_by(task: Task, about: About | None, tokens: Tokens) -> Learned:
    """A prompt with its class matrix."""
    kept = {name: rows.cpu() for name, rows in tokens.items()}
    return Learned(class_matrix(task, about, kept), kept, about)


def matrix_logits(backbone: Backbone, matrix: Tensor, features: Tensor) -> np.ndarray:
    """(n, K) float64 logits of (n, e) features."""
    scale = float(backbone.logit_scale)
    return (scale * features.double() @ matrix.double().T).numpy()


def logits_of(task: Task, learned: Learned, features: Tensor) -> np.ndarray:
    """(n, K) float64 logits of (n, e) features, as the learned prompt's sight makes them."""
    if learned.matrix is not None:
        return matrix_logits(task.backbone, learned.matrix, features)
    method, there = prompt_of(task, learned.about), placed(learned.tokens, task.backbone.device)
    with torch.inference_mode():
        classes = method.prepare([list(task.names)])
        scores = method.logits(there, classes, features.unsqueeze(0).to(task.backbone.device))
    return scores[0].double().cpu().numpy()


def features_of(task: Task, learned: Learned, seen: Seen) -> Tensor:
    """(n, e) L2-normalised features of pictures under what was learned; those that no token
    changes are there already.
    """
    sight = sight_of(task, learned.about, learned.tokens)
    if sight is task.backbone:
        return seen.features[:, 0]
    return test_features(sight, (seen.opened(i) for i in range(len(seen))))
