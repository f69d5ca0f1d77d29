"""A benchmark as the `benchmark` stage left it: what tuning and evaluation read, for any kind of
method.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch

from pipeline.ahead import ahead
from pipeline.artifacts import from_vectors, open_table, read_table, vector_dim
from pipeline.benchmarks.schemas import PICTURES, SAMPLES, test_schema, views_schema
from pipeline.benchmarks.views import AugmentedViews
from pipeline.device import at_once, sent, waiting
from pipeline.errors import InputError
from pipeline.image_file import open_picture
from pipeline.prompts.base import PromptMethod

CHUNK = 512  # test pictures that are judged at once, unless PICTURES_AT_ONCE says otherwise


def samples_of(folder: Path) -> pl.DataFrame:
    """The table of `SAMPLES`."""
    return pl.from_arrow(read_table(folder / "samples.parquet", SAMPLES))


def class_names(samples: pl.DataFrame, head: str) -> list[str]:
    """The names of the base, the new or all classes in label order: a head."""
    return (
        samples.filter(_of(head)).select("label", "name").unique().sort("label")["name"].to_list()
    )


def _of(head: str) -> pl.Expr:
    return pl.lit(True) if head == "all" else pl.col("half") == head


def _pictures(folder: Path, index: np.ndarray) -> dict[int, bytes]:
    """The files of the samples `index`; the rest of the benchmark's pictures is not kept in
    memory.
    """
    path = folder / "pictures.parquet"
    open_table(path, PICTURES)
    # row groups outside are not read
    near = pl.col("index").is_between(int(index.min()), int(index.max()))
    wanted = pl.scan_parquet(path).filter(near & pl.col("index").is_in(index.tolist())).collect()
    return dict(wanted.select("index", "picture").iter_rows())


@dataclass(frozen=True)
class Draw:
    """A few-shot draw.

    Attributes:
        views: of each epoch what `[rows]` makes (n, e) features or (n, 3, h, w) pixels of.
        labels: (n,) int64, among `names`.
        names: of the classes, in label order.
    """

    views: Sequence | AugmentedViews
    labels: np.ndarray
    names: list[str]


def few_shots(folder: Path, method: PromptMethod, classes: str, shots: int, seed: int) -> Draw:
    """The augmented views of one draw of the base or all classes, as features or as pixels,
    whichever the method needs.

    Raises InputError if the benchmark stage made no such draw.
    """
    path = folder / "views.parquet"
    table = read_table(path, views_schema(vector_dim(path, "image")))
    rows = (
        (table["seed"].to_numpy() == seed)
        & (table["shots"].to_numpy() == shots)
        & (table["classes"].to_numpy(zero_copy_only=False) == classes)
    )
    if not rows.any():
        raise InputError(
            f"{path}: has no draw of {shots} shots of {classes} classes for seed {seed}; add "
            f"{shots} to 'benchmarks.{folder.name}.shots.{classes}' and {seed} to "
            "'few_shot.draws', and run `dvc repro`"
        )
    epochs = int(table["epoch"].to_numpy()[rows].max()) + 1
    index = table["index"].to_numpy()[rows].reshape(epochs, -1)[0]
    samples = samples_of(folder)
    label_of = dict(samples.select("index", "label").iter_rows())
    labels, names = (
        np.array([label_of[i] for i in index], dtype=np.int64),
        class_names(samples, classes),
    )
    if method.sees_pixels:
        pictures = _pictures(folder, index)
        return Draw(
            AugmentedViews(
                method.backbone,
                lambda i: open_picture(pictures[index[i]]),
                len(index),
                epochs,
                seed,
            ),
            labels,
            names,
        )
    return Draw(from_vectors(table["image"])[rows].reshape(epochs, len(index), -1), labels, names)


@dataclass(frozen=True)
class Exam:
    """The test pictures of the base, the new or all classes, and their own head.

    Attributes:
        names: the head's class names.
        index: (n,) rows of the samples. labels: (n,) among `names`.
    """

    names: list[str]
    index: np.ndarray
    labels: np.ndarray


def exam_of(samples: pl.DataFrame, head: str) -> Exam:
    rows = samples.filter((pl.col("split") == "test") & _of(head)).sort("index")
    first = int(samples.filter(_of(head))["label"].min())
    return Exam(
        class_names(samples, head), rows["index"].to_numpy(), rows["label"].to_numpy() - first
    )


def seen_tests(folder: Path, method: PromptMethod, index: np.ndarray) -> Iterator[torch.Tensor]:
    """What the method saw of the test pictures `index`, in chunks (1, n, …); they are decoded in a
    thread, a chunk ahead.
    """
    device = method.backbone.device
    shown = (
        _test_views(folder, method, index) if method.sees_pixels else _test_features(folder, index)
    )
    for part in ahead((waiting(part.unsqueeze(0), device) for part in shown), 1):
        yield method.look(sent(part, device))


def _test_views(folder: Path, method: PromptMethod, index: np.ndarray) -> Iterator[torch.Tensor]:
    """(n, 3, h, w) pixels of the test pictures, in chunks."""
    size, view = at_once(CHUNK), method.backbone.test_view
    for start in range(0, len(index), size):
        part = index[start : start + size]
        pictures = _pictures(folder, part)
        yield torch.stack([view(open_picture(pictures[i])) for i in part])


def _test_features(folder: Path, index: np.ndarray) -> Iterator[torch.Tensor]:
    """(n, e) cached features of the test pictures, in chunks."""
    path = folder / "test.parquet"
    table = read_table(path, test_schema(vector_dim(path, "image")))
    row_of = {i: row for row, i in enumerate(table["index"].to_pylist())}
    rows = [row_of[i] for i in index.tolist()]
    yield from torch.from_numpy(from_vectors(table["image"])[rows]).split(at_once(CHUNK))
