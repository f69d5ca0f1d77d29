"""Few-shot tuning from a start θ*, every gradient through R^φ* (paper §3.3, "Testing")."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from pipeline.benchmarks.cache import Draw
from pipeline.benchmarks.params import Tuning
from pipeline.gram.meta import cross_entropy
from pipeline.gram.regulator import regulate
from pipeline.prompts.base import PromptMethod, Tokens
from pipeline.prompts.starts import Start
from pipeline.stage import unwatched


def learning_rate(epoch: int, epochs: int, settings: Tuning) -> float:
    """The protocol's rate of an epoch (from 0): constant in the first, then a cosine over
    `epochs`.
    """
    if epoch == 0:
        return settings.warmup_lr
    return settings.lr * 0.5 * (1 + math.cos(math.pi * (epoch - 1) / epochs))


def tune(
    method: PromptMethod,
    start: Start,
    draw: Draw,
    settings: Tuning,
    seed: int,
    watch: Callable = unwatched,
) -> list[Tokens]:
    """SGD with momentum on the few shots, from a start's θ, every gradient through its φ.

    Args:
        seed: of the order in which pictures come. watch: told of every epoch's mean loss, as
        `watch(epoch, loss=…)`.

    Returns:
        The tokens after every epoch, on the CPU.
    """
    classes = method.prepare([draw.names])
    tokens = {m: v.clone().unsqueeze(0).requires_grad_() for m, v in start.theta.items()}
    optimiser = torch.optim.SGD(
        tokens.values(),
        lr=settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
    )
    order, kept = np.random.default_rng(seed), []
    batch = min(settings.batch, len(draw.labels))
    for epoch, views in enumerate(draw.views):
        optimiser.param_groups[0]["lr"] = learning_rate(epoch, len(draw.views), settings)
        shuffled, losses = order.permutation(len(draw.labels)), []
        for first in range(0, len(draw.labels) - batch + 1, batch):
            rows = shuffled[first : first + batch]
            losses.append(
                _gradients(method, tokens, classes, start, views[rows], draw.labels[rows])
            )
            optimiser.step()
        watch(epoch + 1, loss=torch.stack(losses).mean().item())
        kept.append({m: v.detach().squeeze(0).cpu().clone() for m, v in tokens.items()})
    return kept


def _gradients(
    method: PromptMethod,
    tokens: Tokens,
    classes: Any,
    start: Start,
    views: np.ndarray | torch.Tensor,
    labels: np.ndarray,
) -> torch.Tensor:
    """Gives the tokens (1, rows, d) their regulated gradients; returns the loss."""
    device = method.backbone.device
    seen = method.look(torch.as_tensor(views).unsqueeze(0).to(device))
    wanted = torch.from_numpy(labels.astype(np.int64)).unsqueeze(0).to(device)
    loss = cross_entropy(method.logits(tokens, classes, seen), wanted).sum()
    gradients = dict(zip(tokens, torch.autograd.grad(loss, list(tokens.values())), strict=True))
    with torch.no_grad():
        for name, g in regulate(start.phi, gradients, start.input_scale).items():
            tokens[name].grad = g
    return loss.detach()
