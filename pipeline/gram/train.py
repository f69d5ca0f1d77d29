"""The meta-training loop: Algorithm 1 over streamed episodes, with checkpoints that resume
exactly.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from pipeline.artifacts import replacing
from pipeline.clip.backbone import open_picture
from pipeline.clip.blocks import recomputed_activations
from pipeline.episodes.shards import Episode, ahead, read_episodes
from pipeline.errors import InputError
from pipeline.gram import parallel
from pipeline.gram.meta import InnerStep, agreement, cross_entropy, meta_gradient
from pipeline.gram.params import Outer
from pipeline.gram.regulator import Phi
from pipeline.prompts.base import PromptMethod, Tokens
from pipeline.stage import unwatched, workers

AHEAD = 2  # batches that are read and decoded while one is used
COLUMNS = (
    "step",
    "start_loss",
    "query_loss",
    "query_accuracy",
    "raw_rms",
    "raw_agreement",
    "regulated_agreement",
    "theta_norm",
    "phi_norm",
)


def batches(folder: Path, size: int, skip: int, pictures: bool = False) -> Iterator[list[Episode]]:
    """Batches of episodes, pass after pass, from batch `skip` on. A pass's last incomplete batch
    is left out.
    """

    def endless() -> Iterator[list[Episode]]:
        while True:
            waiting, full = [], 0
            for episode in read_episodes(folder, pictures):
                waiting.append(episode)
                if len(waiting) == size:
                    yield waiting
                    waiting, full = [], full + 1
            if not full:
                raise InputError(
                    f"{folder}: holds {len(waiting)} tasks, fewer than one batch of 'meta_batch' "
                    f"= {size}; raise 'tasks' of this entry of 'episodes'"
                )

    return itertools.islice(endless(), skip, None)


def save_checkpoint(
    path: Path,
    theta: Tokens,
    phi: Phi,
    optimiser: torch.optim.Optimizer,
    step: int,
    curve: list[dict],
) -> None:
    tensors = {f"theta/{k}": v for k, v in theta.items()} | {f"phi/{k}": v for k, v in phi.items()}
    for index, state in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser/{index}/{k}": v for k, v in state.items()}
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={"step": str(step), "curve": json.dumps(curve)})


def load_checkpoint(
    path: Path, theta: Tokens, phi: Phi, optimiser: torch.optim.Optimizer
) -> tuple[int, list[dict]]:
    """Fills θ, φ and the optimiser in place; returns the number of steps done and the curve so
    far.
    """
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        state: dict[int, dict] = {}
        with torch.no_grad():
            for name in file.keys():
                kind, _, rest = name.partition("/")
                if kind == "optimiser":
                    index, _, field = rest.partition("/")
                    state.setdefault(int(index), {})[field] = file.get_tensor(name)
                else:
                    (theta if kind == "theta" else phi)[rest].copy_(file.get_tensor(name))
    groups = optimiser.state_dict()["param_groups"]
    optimiser.load_state_dict({"state": state, "param_groups": groups})
    return int(metadata["step"]), json.loads(metadata["curve"])


@dataclass(frozen=True)
class Batch:
    """The tasks of one meta-step, or a share of them, on the device.

    Attributes:
        numbers: (T,) the tasks' numbers among the episodes. classes: what the method prepared from
        the names. support, query: (T, n, …) and (T, m, …) what the method saw of the pictures;
        labels (T, n), (T, m).
    """

    numbers: tuple[int, ...]
    classes: object
    support: torch.Tensor
    support_labels: torch.Tensor
    query: torch.Tensor
    query_labels: torch.Tensor


def shown(method: PromptMethod, tasks: list[Episode], each: Callable = map) -> list[torch.Tensor]:
    """The tasks' support and query on the CPU: cached features, or decoded pictures if the
    method needs them, by `each` (like map).
    """

    def stack(features, pictures) -> torch.Tensor:
        if not method.sees_pixels:
            return torch.from_numpy(np.stack([getattr(t, features) for t in tasks]))
        return torch.stack(
            [
                torch.stack(
                    list(
                        each(
                            lambda p: method.backbone.test_view(open_picture(p)),
                            getattr(t, pictures),
                        )
                    )
                )
                for t in tasks
            ]
        )

    return [stack("support", "support_pictures"), stack("query", "query_pictures")]


def load_batch(
    method: PromptMethod, tasks: list[Episode], pictures: list[torch.Tensor] | None = None
) -> Batch:
    """Episodes as one batch, with what `shown` made of their pictures.

    Not for a second thread: `twice_differentiable` chooses the attention of the whole process, so
    that the towers' results there would depend on what the first one does meanwhile.
    """
    device = method.backbone.device
    support, query = (method.look(part.to(device)) for part in pictures or shown(method, tasks))
    labels = [
        torch.from_numpy(np.stack([getattr(t, part) for t in tasks])).to(device)
        for part in ("support_labels", "query_labels")
    ]
    return Batch(
        tuple(t.number for t in tasks),
        method.prepare([t.names for t in tasks]),
        support,
        labels[0],
        query,
        labels[1],
    )


def read_ahead(
    method: PromptMethod, tasks: Iterator[list[Episode]], shares: Callable
) -> Iterator[list[tuple[list[Episode], list[torch.Tensor]]]]:
    """The shares of every batch with what is `shown` of them, read and decoded while an earlier
    batch is used.

    DECODE_THREADS (default: number of cores) decode pictures; one more reads.
    """
    with ThreadPoolExecutor(workers("DECODE_THREADS")) as decoders:
        yield from ahead(
            (
                [(share, shown(method, share, decoders.map)) for share in shares(batch)]
                for batch in tasks
            ),
            AHEAD,
        )


@contextmanager
def forward_settings(device: torch.device, outer: Outer):
    """Precision and memory of the forward passes, as `outer` says."""
    with (
        torch.autocast(device.type, torch.bfloat16, enabled=outer.precision == "bf16"),
        recomputed_activations(outer.recompute),
    ):
        yield


def schedule(step: int, steps: int, kind: str) -> float:
    """What the rates are multiplied by at a meta-step (from 0)."""
    return 0.5 * (1 + math.cos(math.pi * step / steps)) if kind == "cosine" else 1.0


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

        def support_loss(tokens):
            return cross_entropy(
                method.logits(tokens, batch.classes, batch.support), batch.support_labels
            )

        def query_logits(tokens):
            return method.logits(tokens, batch.classes, batch.query)

        def everything(tokens):  # without an inner step, all pictures are there to learn from
            return torch.cat(
                [method.logits(tokens, batch.classes, batch.support), query_logits(tokens)], dim=1
            )

        labels = (
            batch.query_labels
            if inner.steps
            else torch.cat([batch.support_labels, batch.query_labels], dim=1)
        )
        with forward_settings(method.backbone.device, outer):
            found = meta_gradient(
                theta,
                phi,
                len(batch.numbers),
                support_loss,
                query_logits if inner.steps else everything,
                labels,
                inner,
            )
            seen = (
                agreement(
                    theta,
                    phi,
                    found.raw,
                    lambda t: cross_entropy(query_logits(t), batch.query_labels),
                    inner.input_scale,
                )
                if measure and inner.steps
                else None
            )
        gradients = [*found.theta.values(), *found.phi.values()]
        bad = [
            n
            for n, loss in zip(batch.numbers, found.query_loss.tolist())
            if not math.isfinite(loss)
        ]
        if bad or not all(g.isfinite().all() for g in gradients):
            raise InputError(
                "loss or gradient is not finite (tasks "
                f"{', '.join(map(str, bad or batch.numbers))}); lower 'inner_lr' or "
                "'outer_lr', the last good checkpoint is kept"
            )
        total = [a + b for a, b in zip(total, gradients)] if total else gradients
        parts = {"query_loss": found.query_loss, "query_accuracy": found.query_accuracy}
        if found.raw:
            parts["raw_rms"] = (
                torch.cat([g.flatten(1) for g in found.raw.values()], dim=1)
                .square()
                .mean(dim=1)
                .sqrt()
            )
        if seen:
            parts |= {
                "start_loss": seen.start_loss,
                "raw_agreement": seen.raw,
                "regulated_agreement": seen.regulated,
            }
        for name, values in parts.items():
            figures.setdefault(name, []).append(values.double().mean().item())
    total = [g / len(shares) for g in total]
    means = torch.tensor(
        [float(np.mean(v)) for v in figures.values()],
        dtype=torch.float64,
        device=method.backbone.device,
    )
    parallel.mean_over_processes(total)
    parallel.mean_over_processes([means])
    names = [*theta, *phi]
    by_name = dict(zip(names, total))
    return Found(
        {k: by_name[k] for k in theta},
        {k: by_name[k] for k in phi},
        dict(zip(figures, means.tolist())),
    )


def optimiser_of(
    theta: Tokens, phi: Phi, outer: Outer, outer_lr: float, regulator_lr: float
) -> torch.optim.Optimizer:
    groups = [
        {"params": list(part.values()), "lr": lr, "base_lr": lr}
        for part, lr in ((theta, outer_lr), (phi, regulator_lr))
        if part
    ]
    if outer.optimiser == "sgd":
        return torch.optim.SGD(groups, momentum=0.9, weight_decay=outer.weight_decay)
    return torch.optim.AdamW(groups, weight_decay=outer.weight_decay)


def meta_train(
    method: PromptMethod,
    theta: Tokens,
    phi: Phi,
    episodes: Path,
    work: Path,
    *,
    inner: InnerStep,
    outer: Outer,
    outer_lr: float,
    regulator_lr: float,
    batch: int,
    steps: int,
    progress,
    watch: Callable = unwatched,
    at_once: int | None = None,
) -> list[dict]:
    """Learns θ and φ in place (Algorithm 1): steps on the meta-gradients of batches of tasks (Eq
    8–9).

    Args:
        theta, phi: leaves that require gradients; {} as φ is the identity regulator. work: folder
        of the checkpoint; training goes on from one that is there. batch: tasks of a meta-step,
        over all processes of `torchrun`. watch: told of every meta-step's row, as `watch(step,
        **figures)`. at_once: tasks in one forward pass; None: all for cached features, one where
        pictures go through
            the tower. It changes memory and speed, not the result beyond rounding.

    Returns:
        One row of `COLUMNS` per meta-step; what was not measured at a step is null.

    Raises:
        InputError naming the tasks if a loss or gradient is not finite.
    """
    rank, processes = parallel.join(method.backbone.device)
    at_once = at_once or (1 if method.sees_pixels else batch // processes)
    if batch % (processes * at_once):
        raise InputError(
            f"'meta_batch' is {batch}, which {processes} processes with {at_once} tasks at once "
            f"cannot share evenly; choose a multiple of {processes * at_once}"
        )
    optimiser = optimiser_of(theta, phi, outer, outer_lr, regulator_lr)
    checkpoint, done, curve = work / "checkpoint.safetensors", 0, []
    if checkpoint.exists():
        done, curve = load_checkpoint(checkpoint, theta, phi, optimiser)

    mine = slice(rank * batch // processes, (rank + 1) * batch // processes)

    def shares(tasks: list[Episode]) -> list[list[Episode]]:
        own = tasks[mine]
        return [own[i : i + at_once] for i in range(0, len(own), at_once)]

    bar = progress(range(done, steps), "meta-steps")
    coming = read_ahead(method, batches(episodes, batch, done, method.sees_pixels), shares)
    for step, read in zip(bar, coming):
        loaded = [load_batch(method, *share) for share in read]
        try:
            found = meta_step(
                method, theta, phi, loaded, inner, outer, step % outer.measure_every == 0
            )
        except InputError as error:
            raise InputError(f"{episodes}: at meta-step {step}, {error}") from None
        norms = []
        for leaves, gradients in ((theta, found.theta), (phi, found.phi)):
            for name, leaf in leaves.items():
                leaf.grad = gradients[name]
            norms.append(
                torch.nn.utils.clip_grad_norm_(leaves.values(), outer.clip_norm).item()
                if leaves
                else 0.0
            )
        for group in optimiser.param_groups:
            group["lr"] = group["base_lr"] * schedule(step, steps, outer.schedule)
        optimiser.step()
        figures = found.figures | {"step": step, "theta_norm": norms[0], "phi_norm": norms[1]}
        curve.append({name: figures.get(name) for name in COLUMNS})
        watch(**curve[-1])
        bar.set_postfix(query_loss=f"{figures['query_loss']:.3f}")
        if (step + 1) % outer.checkpoint_every == 0:
            if rank == 0:
                save_checkpoint(checkpoint, theta, phi, optimiser, step + 1, curve)
            parallel.wait()
    return curve
