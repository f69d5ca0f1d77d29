"""Few-shot tuning from a start θ*, every gradient through R^φ* (paper §3.3, "Testing")."""

from __future__ import annotations

import math
from typing import Callable, Sequence

import numpy as np
import torch

from pipeline.benchmarks.params import Tuning
from pipeline.gram.meta import cross_entropy
from pipeline.gram.regulator import Phi, regulate
from pipeline.prompts.base import PromptMethod, Tokens
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
    start: Tokens,
    phi: Phi,
    input_scale: str,
    names: Sequence[str],
    views: Sequence,
    labels: np.ndarray,
    settings: Tuning,
    seed: int,
    watch: Callable = unwatched,
) -> list[Tokens]:
    """SGD with momentum on the few shots.

    Args:
        start: {name: (rows, d)}; phi: {} for plain gradients. views: for each epoch what `[rows]`
        makes (n, e) features or (n, 3, h, w) pixels of; labels: (n,) among `names`. watch: told of
        every epoch's mean loss, as `watch(epoch, loss=…)`.

    Returns:
        The tokens after every epoch, on the CPU.
    """
    device = method.backbone.device
    classes = method.prepare([list(names)])
    tokens = {m: v.clone().unsqueeze(0).requires_grad_() for m, v in start.items()}
    optimiser = torch.optim.SGD(
        tokens.values(),
        lr=settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
    )
    order = np.random.default_rng(seed)
    batch = min(settings.batch, len(labels))
    kept = []
    for epoch in range(len(views)):
        of_epoch = views[epoch]
        optimiser.param_groups[0]["lr"] = learning_rate(epoch, len(views), settings)
        shuffled, losses = order.permutation(len(labels)), []
        for first in range(0, len(labels) - batch + 1, batch):
            rows = shuffled[first : first + batch]
            seen = method.look(torch.as_tensor(of_epoch[rows]).unsqueeze(0).to(device))
            wanted = torch.from_numpy(labels[rows].astype(np.int64)).unsqueeze(0).to(device)
            loss = cross_entropy(method.logits(tokens, classes, seen), wanted).sum()
            losses.append(loss.detach())
            gradients = dict(zip(tokens, torch.autograd.grad(loss, list(tokens.values()))))
            with torch.no_grad():
                for modality, g in regulate(phi, gradients, input_scale).items():
                    tokens[modality].grad = g
            optimiser.step()
        watch(epoch + 1, loss=torch.stack(losses).mean().item())
        kept.append({m: v.detach().squeeze(0).cpu().clone() for m, v in tokens.items()})
    return kept
