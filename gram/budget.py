"""How long adapting will take, measured on a few pictures and steps before it starts."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import islice

import torch

from gram.inputs import Prepared
from gram.looking import all_opened, features_of_views
from gram.methods import NEED_VIEWS, STEPS, TUNING, VIEWS, plain_start, tuned
from pipeline.errors import InputError

FEW_PICTURES, FEW_STEPS = 4, 2


def _seconds_per_step(ready: Prepared) -> float:
    task = ready.task
    seen = torch.nn.functional.normalize(torch.ones(TUNING.batch, 1, task.backbone.dim), dim=-1)
    labels = torch.arange(TUNING.batch) % len(task.names)
    start = task.start or plain_start(task.backbone, task.seed)
    tuned(task, start, seen, labels, 1)  # what a first call costs is paid once
    began = time.perf_counter()
    tuned(task, start, seen, labels, FEW_STEPS)
    return (time.perf_counter() - began) / FEW_STEPS


def _seconds_per_picture(ready: Prepared, views: int) -> float:
    files = list(islice(ready.collection.files, FEW_PICTURES))
    began = time.perf_counter()
    pictures = all_opened(ready.collection.read, files)
    features_of_views(ready.task.backbone, pictures, views, ready.task.seed)
    return (time.perf_counter() - began) / len(files)


def within(ready: Prepared, minutes: float) -> tuple[Prepared, float, list[str]]:
    """What can be tried in `minutes`, the seconds that it will take, and the methods that were
    left out for it: those that tune a prompt, the more elaborate one first.

    Raises InputError if even the rest takes longer.
    """
    methods, left_out = list(ready.methods), []
    wanted = [m for m in methods if m in NEED_VIEWS]
    step = _seconds_per_step(ready) if wanted else 0.0
    _seconds_per_picture(ready, 0)  # as above
    with_views = _seconds_per_picture(ready, VIEWS) if wanted else 0.0
    alone = _seconds_per_picture(ready, 0)

    def seconds() -> float:
        tuned_ones = sum(m in NEED_VIEWS for m in methods)
        per_picture = with_views if tuned_ones else alone
        learning = tuned_ones * (ready.folds + 1) * STEPS * step
        return len(ready.collection.files) * per_picture + learning

    while seconds() > 60 * minutes and len(methods) > 1 and methods[-1] in NEED_VIEWS:
        left_out.append(methods.pop())
    if seconds() > 60 * minutes:
        raise InputError(
            f"this would take about {said(seconds())}, and --minutes is {minutes:g}; allow more, "
            "or take a quicker --method (probe, zero-shot) or fewer pictures"
        )
    return replace(ready, methods=methods), seconds(), left_out


def said(seconds: float) -> str:
    """A duration in words."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
