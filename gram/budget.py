"""How long adapting will take, measured on a few pictures and steps before it starts."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch
from PIL import Image

from gram.heads import PULL, moved
from gram.inputs import Prepared
from gram.looking import all_opened, features_of_views, test_features
from gram.methods import (
    HEADS,
    STEPS,
    TUNE,
    TUNING,
    VIEWS,
    batch_of,
    epochs_of,
    plain_start,
    sees_pixels,
    titled,
    tuned,
    views_for,
)
from gram.prompted import Seen, sight_of
from pipeline.errors import InputError
from pipeline.prompts.starts import Start

FEW_PICTURES, FEW_STEPS = 4, 2
MANY_ROWS = 1000  # that a head is tried on
ONCE_ABOVE_S = 20.0  # no second measurement of what takes longer
FORWARD = 0.5  # of a step's time, at most, is what naming as many pictures takes


@dataclass(frozen=True)
class Costs:
    """Seconds: of a picture's own features, and with its views'; of a step of CoOp, and of one from
    the start; of naming a picture once more, where the start's tokens change what is seen of it; of
    training a linear head on all pictures.
    """

    alone: float
    with_views: float
    coop_step: float
    start_step: float
    once_more: float
    head: float = 0.0


def _seconds_of(work: Callable[[], object]) -> float:
    """Seconds of `work`: the shorter of two runs, as a machine that is busy for a moment would
    else leave out methods that take seconds. What takes long by itself runs once.
    """
    seconds = math.inf
    for _ in range(2):
        began = time.perf_counter()
        work()
        seconds = min(seconds, time.perf_counter() - began)
        if seconds > ONCE_ABOVE_S:
            break
    return seconds


def _step(ready: Prepared, start: Start, pictures: int) -> float:
    """Seconds of a step with so many pictures, decoded as they will be."""
    task, files = ready.task, ready.collection.files
    blank = torch.nn.functional.normalize(torch.ones(pictures, 1, task.backbone.dim), dim=-1)
    seen = Seen(blank, lambda i: ready.collection.picture(i % len(files)))
    labels = torch.arange(pictures) % len(task.names)
    return _seconds_of(lambda: tuned(task, start, seen, labels, FEW_STEPS)) / FEW_STEPS


def _start_step(ready: Prepared, start: Start, coop_step: float) -> float:
    """Seconds of a step from the start; a large tower is asked about few pictures only."""
    batch = min(batch_of(start), len(ready.collection.files))
    few = min(FEW_PICTURES, batch) if sees_pixels(start) else batch
    _step(ready, start, 1)  # what a first call costs is paid once
    found = _step(ready, start, few)
    text = min(coop_step, found) if "text" in start.theta else 0.0  # the same for all pictures
    return text + (found - text) * batch / few


def _head(ready: Prepared) -> float:
    """Seconds of training a linear head, on vectors that lie about their classes as pictures do."""
    count, dim = len(ready.collection.files), ready.task.backbone.dim
    some, classes, rng = min(count, MANY_ROWS), len(ready.task.names), np.random.default_rng(0)
    labels = np.arange(some) % classes
    vectors = rng.normal(size=(classes, dim))[labels] + rng.normal(size=(some, dim))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return (
        _seconds_of(lambda: moved(np.zeros((classes, dim)), vectors, labels, PULL)) * count / some
    )


def _a_picture(ready: Prepared, look: Callable[[Iterator[Image.Image]], object]) -> float:
    """Seconds of opening a picture and looking at it."""
    files = list(islice(ready.collection.files, FEW_PICTURES))
    return _seconds_of(lambda: look(all_opened(ready.collection.read, files))) / len(files)


def _picture(ready: Prepared, views: int) -> float:
    task = ready.task
    return _a_picture(ready, lambda p: features_of_views(task.backbone, p, views, task.seed))


def _prompted_picture(ready: Prepared, start: Start) -> float:
    """Seconds of a picture through the tower with the start's tokens."""
    return _a_picture(
        ready, lambda p: test_features(sight_of(ready.task, start.about, start.theta), p)
    )


def _costs(ready: Prepared) -> Costs:
    start, coop, from_start, more = ready.task.start, 0.0, 0.0, 0.0
    if set(ready.methods) & set(TUNE):
        plain = plain_start(ready.task.backbone, ready.task.seed)
        _step(ready, plain, 1)
        coop = _step(ready, plain, min(TUNING.batch, len(ready.collection.files)))
    if start is not None and "coop-start" in ready.methods:
        from_start = _start_step(ready, start, coop)
    _picture(ready, 0)
    alone, views = _picture(ready, 0), views_for(ready.methods, start)
    if sees_pixels(start) and start is not None:
        more = _prompted_picture(ready, start)
    elif start is not None and start.prompt == "cocoop":
        more = FORWARD * from_start / batch_of(start)
    with_views = _picture(ready, VIEWS) if views else alone
    head = _head(ready) if set(ready.methods) & set(HEADS) else 0.0
    return Costs(alone, with_views, coop, from_start, more, head)


def _steps(pictures: int, batch: int) -> int:
    return epochs_of(pictures, batch, STEPS) * max(1, pictures // batch)


def single_steps(ready: Prepared) -> str | None:
    """What to say where a method tunes with a batch that is larger than its training set."""
    start, count = ready.task.start, len(ready.collection.files)
    least = count - (-(-count // ready.folds) if ready.folds else 0)
    batches = {"coop": TUNING.batch, "coop-start": 0 if start is None else batch_of(start)}
    large = {name: batches[name] for name in ready.methods if batches.get(name, 0) > least}
    if not large:
        return None
    name, batch = next(iter(large.items()))
    return (
        f"{titled(name, start)} tunes with a batch of {batch}, and a training set has {least} "
        f"pictures: an epoch is one step of all of them, and {epochs_of(least, batch, STEPS)} "
        "epochs make as many steps as elsewhere"
    )


def _seconds(ready: Prepared, methods: list[str], costs: Costs) -> float:
    """All that `learn` does with these methods."""
    start, count = ready.task.start, len(ready.collection.files)
    held_out = count // ready.folds if ready.folds else 0
    trainings = [count - held_out] * ready.folds + [count]
    views = views_for(methods, start)
    total = count * (costs.with_views if views else costs.alone)
    for method in methods:
        if method in HEADS:
            total += costs.head * sum(trainings) / count
        if method == "coop":
            total += costs.coop_step * sum(_steps(n, TUNING.batch) for n in trainings)
        if method == "coop-start" and start is not None:
            total += costs.start_step * sum(_steps(n, batch_of(start)) for n in trainings)
        if method in ("start", "coop-start"):  # held out, and what is kept for the page
            total += costs.once_more * count * (2 if ready.folds else 1)
    return total


def within(ready: Prepared, minutes: float) -> tuple[Prepared, float, dict[str, float]]:
    """What can be tried in `minutes`, the seconds that it will take, and the methods that were
    left out for it, with the seconds of each: of those that tune a prompt the more elaborate first.

    Raises InputError if even the rest takes longer.
    """
    methods, costs = list(ready.methods), _costs(ready)
    left_out: dict[str, float] = {}
    while _seconds(ready, methods, costs) > 60 * minutes and methods[1:] and methods[-1] in TUNE:
        took = _seconds(ready, methods, costs)
        name = methods.pop()
        left_out[name] = took - _seconds(ready, methods, costs)
    seconds = _seconds(ready, methods, costs)
    if seconds > 60 * minutes:
        raise InputError(
            f"this would take about {said(seconds)}, and --minutes is {minutes:g}; allow more, "
            "or take a quicker --method (probe, zero-shot) or fewer pictures"
        )
    return replace(ready, methods=methods), seconds, left_out


def said(seconds: float) -> str:
    """A duration in words."""
    if seconds < 1:
        return "1 s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} hours"
