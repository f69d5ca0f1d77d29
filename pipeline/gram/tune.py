"""Few-shot tuning from a start θ*, every gradient through R^φ* (paper §3.3, "Testing")."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from itertools import islice

import numpy as np
import torch

from pipeline.ahead import ahead
from pipeline.benchmarks.cache import Draw
from pipeline.benchmarks.params import Sgd
from pipeline.device import sent, waiting, within_memory
from pipeline.errors import InputError
from pipeline.gram.meta import cross_entropy
from pipeline.gram.regulator import regulate
from pipeline.prompts.base import PromptMethod, Tokens, placed
from pipeline.prompts.starts import Start
from pipeline.stage import unwatched, warn

LESS = "lower 'tuning.batch', or the batch of this kind of prompt in 'tuning.batch_of'"


def warn_of_single_steps(prompt: str, batch: int, images: Mapping[str, int]) -> None:
    """Says, once for all tunings of a stage, that a batch is larger than the set it is drawn from.

    Args:
        prompt: the kind that is tuned. images: of every tuning, by what it is called.
    """
    small = {name: count for name, count in images.items() if count < batch}
    if small:
        name, count = min(small.items(), key=lambda item: item[1])
        more = f" (and {len(small) - 1} more tunings)" if small.keys() - {name} else ""
        warn(
            f"{name}{more}: {count} images are fewer than the batch of {batch}, so that an epoch "
            f"is 1 step of {count}; for more steps lower 'tuning.batch_of.{prompt}', or "
            "'tuning.batch' where that is not set"
        )


def learning_rate(epoch: int, epochs: int, settings: Sgd) -> float:
    """The protocol's rate of an epoch (from 0): constant in the first, then a cosine over
    `epochs`.
    """
    if epoch == 0:
        return settings.warmup_lr
    return settings.lr * 0.5 * (1 + math.cos(math.pi * (epoch - 1) / epochs))


def _steps(
    draw: Draw, batch: int, seed: int, device: torch.device
) -> Generator[list[torch.Tensor], None, None]:
    """Views (1, b, …) and labels (1, b) of every step, epoch after epoch, waiting on the CPU; the
    pictures left over at an epoch's end are left out.
    """
    order = np.random.default_rng(seed)
    for views in draw.views:
        shuffled = order.permutation(len(draw.labels))
        for first in range(0, len(draw.labels) - batch + 1, batch):
            rows = shuffled[first : first + batch]
            parts = (
                torch.as_tensor(views[rows]),
                torch.from_numpy(draw.labels[rows].astype(np.int64)),
            )
            yield [waiting(part.unsqueeze(0), device) for part in parts]


def tune(
    method: PromptMethod,
    start: Start,
    draw: Draw,
    settings: Sgd,
    seed: int,
    watch: Callable = unwatched,
) -> list[Tokens]:
    """SGD with momentum on the few shots, from a start's θ, every gradient through its φ. Pictures
    are decoded in a thread, up to two steps ahead.

    Args:
        seed: of the order in which pictures come. watch: told of every epoch's mean loss, as
        `watch(epoch, loss=…)`.

    Returns:
        The tokens after every epoch, on the CPU.

    Raises:
        InputError if a loss or a token is not finite, or a step does not fit the device's memory.
    """
    device = method.backbone.device
    classes = method.prepare([draw.names])
    tokens = {m: v.clone().requires_grad_() for m, v in placed(start.theta, device).items()}
    phi = {m: v.to(device) for m, v in start.phi.items()}
    optimiser = torch.optim.SGD(
        tokens.values(), settings.lr, settings.momentum, weight_decay=settings.weight_decay
    )
    batch, kept = min(settings.batch, len(draw.labels)), []
    coming = _steps(draw, batch, seed, device)
    # cached features take less time than a thread
    coming = ahead(coming, 2) if method.sees_pixels else coming
    with within_memory(LESS), closing(coming) as steps:
        for epoch in range(len(draw.views)):
            optimiser.param_groups[0]["lr"] = learning_rate(epoch, len(draw.views), settings)
            losses = []
            for views, labels in islice(steps, len(draw.labels) // batch):
                seen = method.look(sent(views, device))
                logits = method.logits(tokens, classes, seen)
                loss = cross_entropy(logits, sent(labels, device)).sum()
                found = torch.autograd.grad(loss, list(tokens.values()))
                gradients = dict(zip(tokens, found, strict=True))
                with torch.no_grad():
                    for name, g in regulate(phi, gradients, start.input_scale).items():
                        tokens[name].grad = g
                optimiser.step()
                losses.append(loss.detach())
            mean = torch.stack(losses).mean().item()
            kept.append({m: v.detach().squeeze(0).cpu().clone() for m, v in tokens.items()})
            _require_finite(mean, kept)
            watch(epoch + 1, loss=mean)
    return kept


def _require_finite(loss: float, kept: list[Tokens]) -> None:
    if not (math.isfinite(loss) and all(v.isfinite().all() for v in kept[-1].values())):
        raise InputError(
            f"tuning diverged: after epoch {len(kept)}, whose mean loss is {loss:.4g}, tokens are "
            "not finite; lower 'tuning.lr' (or 'tuning.warmup_lr', the first epoch's)"
        )
