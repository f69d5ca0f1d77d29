"""Batches of tasks: read and decoded ahead of their use, then placed on the device."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pipeline.ahead import ahead
from pipeline.device import decoders, sent, waiting
from pipeline.episodes.shards import Episode, count_episodes, read_episodes
from pipeline.errors import InputError
from pipeline.image_file import open_picture
from pipeline.prompts.base import PromptMethod

AHEAD = 2  # batches that are read and decoded while one is used


def batches(folder: Path, size: int, skip: int, pictures: bool = False) -> Iterator[list[Episode]]:
    """Batches of episodes, pass after pass, from batch `skip` on. A pass's last incomplete batch
    is left out.
    """
    tasks = count_episodes(folder)
    in_a_pass = tasks // size
    if not in_a_pass:
        raise InputError(
            f"{folder}: holds {tasks} tasks, fewer than one batch of 'meta_batch' = {size}; raise "
            "'tasks' of this entry of 'episodes'"
        )
    for number in itertools.count(skip // in_a_pass):
        before = skip % in_a_pass if number == skip // in_a_pass else 0
        episodes = read_episodes(folder, pictures, before * size)
        for _ in range(in_a_pass - before):
            yield list(itertools.islice(episodes, size))


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
    """The tasks' support and query, waiting on the CPU: cached features, or decoded pictures if the
    method needs them, by `each` (like map).
    """

    def stack(features, pictures) -> torch.Tensor:
        if not method.sees_pixels:
            return torch.from_numpy(np.stack([getattr(t, features) for t in tasks]))
        view = lambda p: method.backbone.test_view(open_picture(p))
        return torch.stack([torch.stack(list(each(view, getattr(t, pictures)))) for t in tasks])

    parts = stack("support", "support_pictures"), stack("query", "query_pictures")
    return [waiting(part, method.backbone.device) for part in parts]


def load_batch(
    method: PromptMethod, tasks: list[Episode], pictures: list[torch.Tensor] | None = None
) -> Batch:
    """Episodes as one batch, with what `shown` made of their pictures.

    Not for a second thread: `twice_differentiable` chooses the attention of the whole process, so
    that the towers' results there would depend on what the first one does meanwhile.
    """
    device = method.backbone.device
    support, query = (method.look(sent(part, device)) for part in pictures or shown(method, tasks))
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

    `decoders` decode pictures; one thread more reads.
    """
    with decoders() as threads:
        yield from ahead(
            (
                [(share, shown(method, share, threads.map)) for share in shares(batch)]
                for batch in tasks
            ),
            AHEAD,
        )
