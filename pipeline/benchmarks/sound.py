"""What is looked at before a benchmark is encoded: whether it can give what is asked of it."""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl

from pipeline.benchmarks.layouts import Dataset
from pipeline.benchmarks.params import Benchmark
from pipeline.errors import InputError
from pipeline.pictures import copies

HALVED = 4  # classes, so that each half has two to choose from


def check_shots(name: str, settings: Benchmark, samples: pl.DataFrame) -> None:
    """Raises InputError if there is nothing to draw shots from, or if one half of the classes is a
    single one: whatever is shown, that half is right about it.

    Args:
        name: entry of `benchmarks:`. samples: rows of `SAMPLES`.
    """
    shots, classes = settings.shots, samples["label"].n_unique()
    if (shots.base or shots.all) and "train" not in samples["split"]:
        raise InputError(
            f"{settings.path}: has no training pictures, but 'benchmarks.{name}.shots' "
            "asks for draws of them; remove it, or add train/"
        )
    if shots.base and classes < HALVED:
        raise InputError(
            f"{settings.path}: has {classes} classes, so that its new half has one, of which every "
            f"answer is right; base and new halves need {HALVED} classes: remove "
            f"'benchmarks.{name}.shots.base' and 'protocols.{name}.base_to_new', or add classes "
            "('all_classes' may have two)"
        )


def remarks(name: str, settings: Benchmark, dataset: Dataset) -> Iterator[str]:
    """What a person should know of a dataset that can be used."""
    samples, pictures = pl.from_arrow(dataset.samples), dataset.pictures
    most = max([*settings.shots.base, *settings.shots.all], default=0)
    train, test = (samples.filter(split=split) for split in ("train", "test"))
    if most:
        fewest = train.group_by("name").len().sort("len", "name").row(0)
        if fewest[1] < most:
            yield (
                f"{settings.path}: class '{fewest[0]}' has {fewest[1]} training pictures, "
                f"fewer than the {most} of 'benchmarks.{name}.shots'; all are taken"
            )
    if dataset.split == "own":  # published parts are what they are
        twins = copies(pictures, train["file"].to_list(), test["file"].to_list())
        if twins:
            first = next(iter(twins))
            yield (
                f"{settings.path}: {len(twins)} of {len(test)} test pictures are copies of "
                f"training pictures (the first: {first} of {twins[first]}), so that accuracy is "
                "too high; remove them"
            )
