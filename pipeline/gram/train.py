"""The meta-training loop: Algorithm 1 over streamed episodes, with checkpoints that resume
exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pipeline.device import within_memory
from pipeline.episodes.shards import Episode
from pipeline.errors import InputError, naming
from pipeline.gram import parallel
from pipeline.gram.batch import Batch, batches, load_batch, read_ahead
from pipeline.gram.checkpoint import load_checkpoint, save_checkpoint
from pipeline.gram.forward import forward_settings
from pipeline.gram.meta import (
    Agreement,
    InnerStep,
    MetaGradient,
    agreement,
    cross_entropy,
    meta_gradient,
)
from pipeline.gram.params import Outer
from pipeline.gram.regulator import Phi
from pipeline.gram.validation import Kept, Validation, require_tasks, validation_of
from pipeline.prompts.base import PromptMethod, Tokens
from pipeline.stage import progress, unwatched

LESS = (
    "give `--tasks-at-once 1`, set 'outer.recompute' to true or 'outer.precision' to bf16, or "
    "lower 'ways', 'support_shots' or 'query_shots'"
)
COLUMNS = (
    "step",
    "start_loss",
    "query_loss",
    "query_accuracy",
    "raw_rms",
    "raw_agreement",
    "regulated_agreement",
    "raw_inner",
    "regulated_inner",
    "theta_norm",
    "phi_norm",
)


@dataclass(frozen=True)
class Training:
    """How θ and φ are learned.

    Attributes:
        inner, outer: the two loops of Algorithm 1.
        outer_lr, regulator_lr: rates of θ and φ (Eq 8–9), before `outer.schedule`.
        batch: tasks of a meta-step, over all processes of `torchrun`. steps: meta-steps.
        judged: how validation tasks are adapted to; None: as in training.
    """

    inner: InnerStep
    outer: Outer
    outer_lr: float
    regulator_lr: float
    batch: int
    steps: int
    judged: InnerStep | None = None

    @property
    def criterion(self) -> str:
        """The validation figure that training lowers: without an inner step, that of θ itself."""
        return "validation_loss" if self.inner.steps else "validation_start_loss"


@dataclass(frozen=True)
class Workplace:
    """Where meta-training finds its tasks, and who looks on; none of it changes what is learned.

    Attributes:
        episodes: folder of shards. work: folder of the checkpoint; training goes on from one that
        is there.
        at_once: tasks in one forward pass; None: all for cached features, one where pictures go
        through the tower. It changes memory and speed, not the result beyond rounding.
        progress: bar over the meta-steps. watch: told of every meta-step's row, as `watch(step,
        **figures)`.
    """

    episodes: Path
    work: Path
    at_once: int | None = None
    progress: Callable = progress
    watch: Callable = unwatched


def schedule(step: int, steps: int, kind: str) -> float:
    """What the rates are multiplied by at a meta-step (from 0)."""
    return 0.5 * (1 + math.cos(math.pi * step / steps)) if kind == "cosine" else 1.0


def _share_gradient(
    method: PromptMethod, theta: Tokens, phi: Phi, batch: Batch, inner: InnerStep
) -> MetaGradient:
    """The meta-gradient of a share's tasks; without an inner step, all of their pictures are there
    to learn from.
    """

    def support_logits(tokens: Tokens) -> torch.Tensor:
        return method.logits(tokens, batch.classes, batch.support)

    def query_logits(tokens: Tokens) -> torch.Tensor:
        logits = method.logits(tokens, batch.classes, batch.query)
        return logits if inner.steps else torch.cat([support_logits(tokens), logits], dim=1)

    return meta_gradient(
        theta,
        phi,
        len(batch.numbers),
        lambda tokens: cross_entropy(support_logits(tokens), batch.support_labels),
        query_logits,
        batch.query_labels
        if inner.steps
        else torch.cat([batch.support_labels, batch.query_labels], dim=1),
        inner,
    )


def _share_agreement(
    method: PromptMethod,
    theta: Tokens,
    phi: Phi,
    batch: Batch,
    support_gradient: Tokens,
    input_scale: str,
) -> Agreement:
    def query_loss(tokens: Tokens) -> torch.Tensor:
        return cross_entropy(method.logits(tokens, batch.classes, batch.query), batch.query_labels)

    return agreement(theta, phi, support_gradient, query_loss, input_scale)


def _require_finite(batch: Batch, found: MetaGradient) -> None:
    """Raises InputError naming the tasks."""
    bad = [
        number
        for number, loss in zip(batch.numbers, found.query_loss.tolist(), strict=True)
        if not math.isfinite(loss)
    ]
    gradients = [*found.theta.values(), *found.phi.values()]
    if bad or not all(g.isfinite().all() for g in gradients):
        raise InputError(
            "loss or gradient is not finite (tasks "
            f"{', '.join(map(str, bad or batch.numbers))}); lower 'inner_lr' or "
            "'outer_lr', the last good checkpoint is kept"
        )


def _figures(found: MetaGradient, seen: Agreement | None) -> dict[str, torch.Tensor]:
    """What there is to see of a share: (T,) by the names of `COLUMNS`."""
    figures = {"query_loss": found.query_loss, "query_accuracy": found.query_accuracy}
    if found.raw:
        raw = torch.cat([g.flatten(1) for g in found.raw.values()], dim=1)
        figures["raw_rms"] = raw.square().mean(dim=1).sqrt()
    if seen:
        figures |= {
            "start_loss": seen.start_loss,
            "raw_agreement": seen.raw,
            "regulated_agreement": seen.regulated,
            "raw_inner": seen.raw_inner,
            "regulated_inner": seen.regulated_inner,
        }
    return figures


@dataclass(frozen=True)
class Found:
    """A meta-step's gradients and figures, averaged over all of its tasks in all processes."""

    theta: Tokens
    phi: Phi
    figures: dict[str, float]


def meta_step(
    method: PromptMethod,
    theta: Tokens,
    phi: Phi,
    shares: list[Batch],
    inner: InnerStep,
    outer: Outer,
    measure: bool,
) -> Found:
    """The meta-gradient of one batch, share by share (equal sizes), and what there is to see.

    Raises InputError naming the tasks if a task's loss or a gradient is not finite.
    """
    total: list[torch.Tensor] = []
    figures: dict[str, list[float]] = {}
    for batch in shares:
        with forward_settings(method.backbone.device, outer):
            found = _share_gradient(method, theta, phi, batch, inner)
            seen = (
                _share_agreement(method, theta, phi, batch, found.raw, inner.input_scale)
                if measure and inner.steps
                else None
            )
        _require_finite(batch, found)
        gradients = [*found.theta.values(), *found.phi.values()]
        total = [a + b for a, b in zip(total, gradients, strict=True)] if total else gradients
        for name, values in _figures(found, seen).items():
            figures.setdefault(name, []).append(values.double().mean().item())
    total = [g / len(shares) for g in total]
    means = torch.tensor(
        [float(np.mean(v)) for v in figures.values()],
        dtype=torch.float64,
        device=method.backbone.device,
    )
    parallel.mean_over_processes(total)
    parallel.mean_over_processes([means])
    by_name = dict(zip([*theta, *phi], total, strict=True))
    return Found(
        {k: by_name[k] for k in theta},
        {k: by_name[k] for k in phi},
        dict(zip(figures, means.tolist(), strict=True)),
    )


def optimiser_of(theta: Tokens, phi: Phi, settings: Training) -> torch.optim.Optimizer:
    groups = [
        {"params": list(part.values()), "lr": lr, "base_lr": lr}
        for part, lr in ((theta, settings.outer_lr), (phi, settings.regulator_lr))
        if part
    ]
    decay = settings.outer.weight_decay
    if settings.outer.optimiser == "sgd":
        return torch.optim.SGD(groups, momentum=0.9, weight_decay=decay)
    return torch.optim.AdamW(groups, weight_decay=decay)


def _clipped(leaves: Tokens, gradients: Tokens, most: float) -> float:
    """Gives the leaves their gradients, no longer than `most` together; how long they were."""
    for name, leaf in leaves.items():
        leaf.grad = gradients[name]
    return torch.nn.utils.clip_grad_norm_(leaves.values(), most).item() if leaves else 0.0


def _shares(method: PromptMethod, batch: int, at_once: int | None) -> Callable:
    """From a batch's tasks to those of this process, as many together as go through the towers at
    once.

    Raises InputError if the processes cannot share a batch evenly.
    """
    rank, processes = parallel.join(method.backbone.device)
    if processes > batch:
        raise InputError(
            f"'meta_batch' is {batch}, but {processes} processes were started, and each takes at "
            f"least one task of a batch; start at most {batch} (torchrun --nproc-per-node "
            f"{batch}), or raise 'meta_batch' to a multiple of {processes} (another result)"
        )
    at_once = at_once or (1 if method.sees_pixels else batch // processes)
    if batch % (processes * at_once):
        raise InputError(
            f"'meta_batch' is {batch}, which {processes} processes with {at_once} tasks at once "
            f"cannot share evenly; choose a multiple of {processes * at_once}"
        )
    mine = slice(rank * batch // processes, (rank + 1) * batch // processes)

    def shares(tasks: list[Episode]) -> list[list[Episode]]:
        own = tasks[mine]
        return [own[i : i + at_once] for i in range(0, len(own), at_once)]

    return shares


def meta_train(
    method: PromptMethod, theta: Tokens, phi: Phi, settings: Training, place: Workplace
) -> list[dict]:
    """Learns θ and φ in place (Algorithm 1): steps on the meta-gradients of batches of tasks (Eq
    8–9). In the end they are what `outer.keep` says.

    Args:
        theta, phi: leaves that require gradients; {} as φ is the identity regulator.

    Returns:
        One row of `COLUMNS` per meta-step; what was not measured at a step is null. A row also has
        what validation tasks said before that step, if they were looked at
        (`validation.COLUMNS`); the last one has what they say of what is kept.

    Raises:
        InputError naming the tasks if a loss or gradient is not finite.
    """
    shares, outer = _shares(method, settings.batch, place.at_once), settings.outer
    require_tasks(outer.keep, place.episodes)
    validate = _validation(method, settings, place)
    optimiser, kept = (
        optimiser_of(theta, phi, settings),
        Kept(outer.keep, theta, phi, settings.steps),
    )
    checkpoint, done, curve = place.work / "checkpoint.safetensors", 0, []
    if checkpoint.exists():
        done, curve = load_checkpoint(checkpoint, kept, optimiser)
    bar = place.progress(range(done, settings.steps), "meta-steps")
    tasks = batches(place.episodes, settings.batch, done, method.sees_pixels)
    for step, read in zip(bar, read_ahead(method, tasks, shares), strict=False):
        seen = validate(theta, phi) if step % outer.validate_every == 0 else {}
        if seen:
            kept.judged(seen, settings.criterion)
        with naming(f"{place.episodes}: at meta-step {step}", ", "), within_memory(LESS):
            loaded, measure = [load_batch(method, *share) for share in read], outer.measure_every
            found = meta_step(
                method, theta, phi, loaded, settings.inner, outer, step % measure == 0
            )
        norms = _stepped(theta, phi, found, optimiser, settings, step)
        kept.stepped(step + 1)
        figures = found.figures | norms | {"step": step}
        curve.append({name: figures.get(name) for name in COLUMNS} | seen)
        place.watch(**curve[-1])
        bar.set_postfix(query_loss=f"{figures['query_loss']:.3f}")
        if (step + 1) % outer.checkpoint_every == 0:
            if parallel.rank() == 0:
                save_checkpoint(checkpoint, kept, optimiser, step + 1, curve)
            parallel.wait()
    concluded = _concluded(theta, phi, kept, validate, settings)
    place.watch(settings.steps, **concluded)
    curve[-1] |= concluded
    return curve


def _validation(method: PromptMethod, settings: Training, place: Workplace) -> Callable:
    """(θ, φ) → what validation tasks say of them."""
    processes = parallel.join(method.backbone.device)[1]
    at_once = place.at_once or (1 if method.sees_pixels else settings.batch // processes)
    folder, inner = validation_of(place.episodes), settings.judged or settings.inner
    validation = Validation(folder, inner, settings.outer, at_once)

    def validate(theta: Tokens, phi: Phi) -> dict[str, float]:
        with naming(str(folder), ": "), within_memory(LESS):
            return validation(method, theta, phi)

    return validate


def _stepped(
    theta: Tokens,
    phi: Phi,
    found: Found,
    optimiser: torch.optim.Optimizer,
    settings: Training,
    step: int,
) -> dict[str, float]:
    """Eq 8–9 at a meta-step; the lengths of the gradients."""
    outer = settings.outer
    norms = {
        "theta_norm": _clipped(theta, found.theta, outer.clip_norm),
        "phi_norm": _clipped(phi, found.phi, outer.clip_norm),
    }
    for group in optimiser.param_groups:
        group["lr"] = group["base_lr"] * schedule(step, settings.steps, outer.schedule)
    optimiser.step()
    return norms


def _concluded(
    theta: Tokens, phi: Phi, kept: Kept, validate: Callable, settings: Training
) -> dict[str, float]:
    """Makes θ and φ what is kept; what validation tasks say of that."""
    if kept.kind == "best":
        kept.judged(validate(theta, phi), settings.criterion)
    kept.put()
    return kept.figures or validate(theta, phi)
