"""Judges learned tokens on a benchmark's test pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from pipeline.benchmarks.cache import exam_of, samples_of, seen_tests
from pipeline.benchmarks.schemas import SCORES
from pipeline.prompts.base import PromptMethod, Tokens


def judge(method: PromptMethod, folder: Path, states: dict[str, Tokens], half: str) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Predictions of several states of a method's tokens under a half's own head.

    Args:
        folder: the benchmark's artifacts. states: name → {learned name: (rows, d)}.

    Returns:
        (n,) rows of the samples, (n,) labels within the head, and name → (n,) predicted labels.
    """
    exam = exam_of(samples_of(folder), half)
    device = method.backbone.device
    with torch.inference_mode():
        classes = method.prepare([exam.names])
        placed = {name: {m: v.unsqueeze(0).to(device) for m, v in tokens.items()} for name, tokens in states.items()}
        heads = {name: method.head(tokens, classes) for name, tokens in placed.items()}
        found: dict[str, list[np.ndarray]] = {name: [] for name in states}
        for seen in seen_tests(folder, method, exam.index):
            for name, tokens in placed.items():
                found[name].append(method.scores(tokens, heads[name], seen)[0].argmax(dim=-1).cpu().numpy())
    return exam.index, exam.labels, {name: np.concatenate(parts) for name, parts in found.items()}


def scores_table(seed: int, half: str, index: np.ndarray, labels: np.ndarray, predicted: np.ndarray) -> pa.Table:
    """Rows of `SCORES` for one seed and half."""
    columns = [np.full(len(index), seed), [half] * len(index), index, labels, predicted]
    return pa.table([pa.array(c, type=f.type) for c, f in zip(columns, SCORES)], schema=SCORES)
