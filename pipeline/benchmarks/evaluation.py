"""Judges learned tokens on test pictures."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np
import polars as pl
import pyarrow as pa
import torch

from pipeline.benchmarks.cache import CHUNK, exam_of, samples_of, seen_tests
from pipeline.benchmarks.params import Protocols
from pipeline.benchmarks.protocols import Exam, Run, exams_of
from pipeline.benchmarks.schemas import EPOCHS, VERDICTS
from pipeline.device import FEWER_PICTURES, at_once, within_memory
from pipeline.errors import InputError
from pipeline.prompts.base import PromptMethod, Tokens, placed

Name = TypeVar("Name", bound=Hashable)
States = dict[tuple[int, int, int], Tokens]  # by shots, seed and epoch


def judge(
    method: PromptMethod, folder: Path, states: Mapping[Name, Tokens], head: str
) -> tuple[np.ndarray, np.ndarray, dict[Name, np.ndarray]]:
    """Predictions of several states of a method's tokens under the head of the base, new or all
    classes.

    Every picture is read (and, for visual prompts, embedded) once for all states.

    Args:
        folder: the benchmark's artifacts. states: any name → {learned name: (rows, d)}.

    Returns:
        (n,) rows of the samples, (n,) labels within the head, and name → (n,) predicted labels.

    Raises:
        InputError naming the state if a score is not finite, for NaN would count as class 0.
    """
    exam = exam_of(samples_of(folder), head)
    less = FEWER_PICTURES.format(at_once(CHUNK))
    with torch.inference_mode(), within_memory(less):
        classes = method.prepare([exam.names])
        there = {name: placed(v, method.backbone.device) for name, v in states.items()}
        heads = {name: method.head(tokens, classes) for name, tokens in there.items()}
        found: dict[Name, list[np.ndarray]] = {name: [] for name in states}
        for seen in seen_tests(folder, method, exam.index):
            for name, tokens in there.items():
                scores = method.scores(tokens, heads[name], seen)[0]
                if not scores.isfinite().all():
                    raise InputError(
                        f"{folder}: scores under the head of {head} classes are not finite "
                        f"({_words(name)}); the tokens diverged: lower 'tuning.lr' and run "
                        "`dvc repro` again"
                    )
                found[name].append(scores.argmax(dim=-1).cpu().numpy())
    return exam.index, exam.labels, {name: np.concatenate(parts) for name, parts in found.items()}


def _words(state: Hashable) -> str:
    if isinstance(state, tuple) and len(state) == 3:
        return "{} shots, seed {}, after epoch {}".format(*state)
    return str(state)


def verdicts(
    source: str,
    run: Run,
    exam: Exam,
    index: np.ndarray,
    labels: np.ndarray,
    predicted: np.ndarray,
) -> pa.Table:
    """Rows of `VERDICTS` for the last state of a tuning."""
    n = len(index)
    columns = [
        [source] * n,
        [run.classes] * n,
        np.full(n, run.shots),
        np.full(n, run.seed),
        [exam.benchmark] * n,
        [exam.head] * n,
        index,
        labels,
        predicted,
    ]
    return pa.table(
        [pa.array(c, type=f.type) for c, f in zip(columns, VERDICTS, strict=True)], schema=VERDICTS
    )


def judge_source(
    name: str,
    protocols: Protocols,
    states: Mapping[str, States],
    method_on: Callable[[str], PromptMethod],
    benchmarks: Path,
) -> tuple[pa.Table, pl.DataFrame]:
    """Judges what was tuned on one benchmark, the source, wherever its protocols say.

    Args:
        states: tokens by the classes they were tuned on (base, all) and by (shots, seed, epoch).
        method_on: the method with a benchmark's own template. benchmarks: the benchmarks'
        artifacts, a folder each.

    Returns:
        `VERDICTS` of each run's last epoch; and source, shots, seed, epoch, head, top1 (percent) of
        every epoch of those that were tuned on base classes.
    """
    parts, epochs = [VERDICTS.empty_table()], []
    for tuned_on, exams in exams_of(name, protocols).items():
        last = {(shots, seed): epoch for shots, seed, epoch in sorted(states[tuned_on])}
        for exam in exams:
            index, labels, predicted = judge(
                method_on(exam.benchmark), benchmarks / exam.benchmark, states[tuned_on], exam.head
            )
            for (shots, seed), epoch in last.items():
                parts.append(
                    verdicts(
                        name,
                        Run(tuned_on, shots, seed),
                        exam,
                        index,
                        labels,
                        predicted[shots, seed, epoch],
                    )
                )
            if tuned_on == "base":
                epochs += [
                    (name, *state, exam.head, 100 * float((found == labels).mean()))
                    for state, found in predicted.items()
                ]
    return pa.concat_tables(parts), pl.DataFrame(epochs, schema=EPOCHS, orient="row")
