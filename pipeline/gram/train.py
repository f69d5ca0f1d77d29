"""The meta-training loop: Algorithm 1 over streamed episodes, with checkpoints that resume exactly."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Iterator

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from pipeline.artifacts import replacing
from pipeline.episodes.shards import Episode, read_episodes
from pipeline.errors import InputError
from pipeline.gram.meta import InnerStep, cross_entropy, meta_gradient
from pipeline.gram.params import Outer
from pipeline.gram.regulator import Phi
from pipeline.prompts.base import PromptMethod, Tokens

COLUMNS = ("step", "start_loss", "query_loss", "query_accuracy", "raw_rms", "theta_norm", "phi_norm")


def batches(folder: Path, size: int, skip: int) -> Iterator[list[Episode]]:
    """Batches of episodes, pass after pass, from batch `skip` on. A pass's last incomplete batch is left out."""

    def endless() -> Iterator[list[Episode]]:
        while True:
            waiting, full = [], 0
            for episode in read_episodes(folder):
                waiting.append(episode)
                if len(waiting) == size:
                    yield waiting
                    waiting, full = [], full + 1
            if not full:
                raise InputError(f"{folder}: holds {len(waiting)} tasks, fewer than one batch of 'meta_batch' = {size}; raise 'tasks' of this entry of 'episodes'")

    return itertools.islice(endless(), skip, None)


def _norm(tensors) -> torch.Tensor:
    return torch.stack([t.square().sum() for t in tensors]).sum().sqrt()


def save_checkpoint(path: Path, theta: Tokens, phi: Phi, optimiser: torch.optim.Optimizer, step: int, curve: list[dict]) -> None:
    tensors = {f"theta/{k}": v for k, v in theta.items()} | {f"phi/{k}": v for k, v in phi.items()}
    for index, state in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser/{index}/{k}": v for k, v in state.items()}
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={"step": str(step), "curve": json.dumps(curve)})


def load_checkpoint(path: Path, theta: Tokens, phi: Phi, optimiser: torch.optim.Optimizer) -> tuple[int, list[dict]]:
    """Fills θ, φ and the optimiser in place; returns the number of steps done and the curve so far."""
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


def meta_train(method: PromptMethod, theta: Tokens, phi: Phi, episodes: Path, work: Path, *, inner: InnerStep, outer: Outer, outer_lr: float, regulator_lr: float, batch: int, steps: int, progress) -> list[dict]:
    """Learns θ and φ in place (Algorithm 1), with Adam on the meta-gradients (Eq 8–9).

    Args:
        theta, phi: leaves that require gradients; {} as φ is the identity regulator.
        work: folder of the checkpoint; training goes on from one that is there.

    Returns:
        One row of `COLUMNS` per meta-step.

    Raises:
        InputError naming the tasks if a loss or gradient is not finite.
    """
    groups = [{"params": list(theta.values()), "lr": outer_lr}, {"params": list(phi.values()), "lr": regulator_lr}]
    optimiser = torch.optim.Adam([g for g in groups if g["params"]])
    checkpoint, done, curve = work / "checkpoint.safetensors", 0, []
    if checkpoint.exists():
        done, curve = load_checkpoint(checkpoint, theta, phi, optimiser)
    device = method.backbone.device

    def stack(arrays) -> torch.Tensor:
        return torch.from_numpy(np.stack(arrays)).to(device)

    bar = progress(range(done, steps), "meta-steps")
    for step, tasks in zip(bar, batches(episodes, batch, done)):
        classes = method.prepare([t.names for t in tasks])
        support, support_labels = stack([t.support for t in tasks]), stack([t.support_labels for t in tasks])
        query, query_labels = stack([t.query for t in tasks]), stack([t.query_labels for t in tasks])
        found = meta_gradient(
            theta, phi, len(tasks),
            lambda tokens: cross_entropy(method.logits(tokens, classes, support), support_labels),
            lambda tokens: method.logits(tokens, classes, query), query_labels, inner,
        )
        norms = [_norm(part.values()) if part else torch.zeros(()) for part in (found.theta, found.phi)]
        if not all(map(np.isfinite, (found.query_loss, *(n.item() for n in norms)))):
            numbers = ", ".join(str(t.number) for t in tasks)
            raise InputError(f"{episodes}: loss or gradient is not finite at meta-step {step} (tasks {numbers}); lower 'inner_lr' or 'outer_lr', the last good checkpoint is kept")
        for leaves, gradients, norm in ((theta, found.theta, norms[0]), (phi, found.phi, norms[1])):
            scale = min(1.0, outer.clip_norm / (norm.item() + 1e-12))
            for name, leaf in leaves.items():
                leaf.grad = gradients[name] * scale
        optimiser.step()
        curve.append(dict(zip(COLUMNS, (step, found.start_loss, found.query_loss, found.query_accuracy, found.raw_rms, norms[0].item(), norms[1].item()))))
        bar.set_postfix(query_loss=f"{found.query_loss:.3f}")
        if (step + 1) % outer.checkpoint_every == 0:
            save_checkpoint(checkpoint, theta, phi, optimiser, step + 1, curve)
    return curve
