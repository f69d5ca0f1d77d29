"""How θ and φ do on tasks of topics that training never sees: before adaptation, after an inner
step on plain gradients, and after one through R^φ.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from pipeline.episodes.shards import VALIDATION, Episode, read_episodes
from pipeline.errors import InputError
from pipeline.gram import parallel
from pipeline.gram.batch import Batch, load_batch, read_ahead
from pipeline.gram.forward import forward_settings
from pipeline.gram.meta import InnerStep, adapt, cross_entropy
from pipeline.gram.params import Outer
from pipeline.gram.regulator import Phi, regulate
from pipeline.prompts.base import PromptMethod, Tokens

# θ as it is; after the inner step on plain gradients; after the inner step through R^φ
STATES = ("validation_start", "validation_plain", "validation")
MEASURES = ("loss", "accuracy")
COLUMNS = tuple(f"{state}_{measure}" for state in STATES for measure in MEASURES)


@dataclass(frozen=True)
class Validation:
    """Validation tasks, and how they are adapted to.

    Attributes:
        folder: of their shards; None: there are none.
        inner: the adaptation; of a pre-training too, whose own training has no inner step.
        outer: precision and memory of the forward passes.
        at_once: tasks in one forward pass.
    """

    folder: Path | None
    inner: InnerStep
    outer: Outer
    at_once: int

    def __call__(self, method: PromptMethod, theta: Tokens, phi: Phi) -> dict[str, float]:
        """The means of `COLUMNS` over all tasks: losses in nats, accuracies from 0 to 1; {} if
        there are no tasks. Processes of `torchrun` share the tasks.
        """
        if self.folder is None:
            return {}
        inner = replace(self.inner, second_order=False)
        sums = torch.zeros(1 + len(COLUMNS), dtype=torch.float64, device=method.backbone.device)
        for ((tasks, pictures),) in read_ahead(
            method, self._own(method, self.folder), lambda own: [own]
        ):
            batch = load_batch(method, tasks, pictures)
            with forward_settings(method.backbone.device, self.outer):
                found = _measured(method, theta, phi, batch, inner)
            sums[0] += len(tasks)
            sums[1:] += torch.stack([v.double().sum() for v in found])
        parallel.mean_over_processes([sums])
        return dict(zip(COLUMNS, (sums[1:] / sums[0]).tolist(), strict=True))

    def _own(self, method: PromptMethod, folder: Path) -> Iterator[list[Episode]]:
        """This process's tasks, `at_once` together."""
        rank, processes = parallel.join(method.backbone.device)
        tasks = read_episodes(folder, method.sees_pixels)
        own = islice(tasks, rank, None, processes)
        while share := list(islice(own, self.at_once)):
            yield share


def _measured(
    method: PromptMethod, theta: Tokens, phi: Phi, batch: Batch, inner: InnerStep
) -> list[Tensor]:
    """(T,) of every one of `COLUMNS`."""
    tasks = len(batch.numbers)
    start = {
        m: v.detach().expand(tasks, *v.shape).clone().requires_grad_() for m, v in theta.items()
    }

    def support_loss(tokens: Tokens) -> Tensor:
        return cross_entropy(method.logits(tokens, batch.classes, batch.support), labels)

    labels = batch.support_labels
    plain, raw = adapt(start, {}, support_loss, inner)
    regulated = plain
    if phi:  # the first step's gradient is the same
        step = regulate(phi, raw, inner.input_scale)
        once = {m: start[m] - inner.lr * step[m] for m in start}
        regulated = adapt(once, phi, support_loss, replace(inner, steps=inner.steps - 1))[0]
    found = []
    with torch.no_grad():
        for tokens in (start, plain, regulated) if phi else (start, plain):
            logits = method.logits(tokens, batch.classes, batch.query)
            hits = (logits.argmax(dim=-1) == batch.query_labels).float().mean(dim=1)
            found += [cross_entropy(logits, batch.query_labels), hits]
    return found if phi else found + found[2:]


def validation_of(episodes: Path) -> Path | None:
    """Where the validation tasks of a folder of episodes lie; None if it has none."""
    folder = episodes / VALIDATION
    return folder if folder.is_dir() else None


class Kept:
    """What is kept of a training: the last θ and φ, those that did best on validation tasks, or
    the mean of those after every meta-step of the second half.
    """

    def __init__(self, kind: str, theta: Tokens, phi: Phi, steps: int):
        self.kind, self.steps = kind, steps
        # θ and φ as they are trained
        self.leaves = {f"theta/{k}": v for k, v in theta.items()}
        self.leaves |= {f"phi/{k}": v for k, v in phi.items()}
        self.values: dict[str, Tensor] = {}  # what is kept so far, unless it is the last
        self.count = 0  # meta-steps that `values` is the mean of
        self.figures: dict[str, float] = {}  # of `values` on validation tasks

    def stepped(self, done: int) -> None:
        """Told after every meta-step, the `done`-th."""
        if self.kind != "average" or done <= self.steps // 2:
            return
        self.count += 1
        if self.count == 1:
            self._take()
        for name, leaf in self.leaves.items():
            self.values[name].lerp_(leaf.detach(), 1 / self.count)

    def judged(self, figures: dict[str, float], by: str) -> None:
        """Told what validation tasks say of θ and φ as they are; the least `by` is the best."""
        if self.kind == "best" and figures[by] < self.figures.get(by, float("inf")):
            self._take()
            self.figures = figures

    def _take(self) -> None:
        self.values = {k: v.detach().clone() for k, v in self.leaves.items()}

    def put(self) -> None:
        """Makes θ and φ what is kept."""
        with torch.no_grad():
            for name, value in self.values.items():
                self.leaves[name].copy_(value)


def require_tasks(kind: str, episodes: Path) -> None:
    """Raises InputError if the best state is to be kept and nothing says which that is."""
    if kind == "best" and validation_of(episodes) is None:
        raise InputError(
            f"{episodes}: holds no validation tasks, by which 'outer.keep: best' chooses; raise "
            "'held_out_topics', or set 'outer.keep' to last or average"
        )
