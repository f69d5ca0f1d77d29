"""Schemas of a benchmark's artifacts and of scores."""

from __future__ import annotations

import polars as pl
import pyarrow as pa

from pipeline.artifacts import vector_type

# One row per picture. label counts over all classes; half: base or new.
SAMPLES = pa.schema(
    [
        ("index", pa.int32()),
        ("split", pa.string()),
        ("domain", pa.string()),
        ("label", pa.int32()),
        ("name", pa.string()),
        ("half", pa.string()),
        ("file", pa.string()),
    ]
)

# One row per judged picture. The prompt was tuned on the `tuned_on` (base or all) classes of
# `source`, with so many shots (0: zero-shot), and judged on a picture of `benchmark` under the head
# of its base, new or all classes: label and predicted count within that head.
VERDICTS = pa.schema(
    [
        ("source", pa.string()),
        ("tuned_on", pa.string()),
        ("shots", pa.int32()),
        ("seed", pa.int32()),
        ("benchmark", pa.string()),
        ("head", pa.string()),
        ("index", pa.int32()),
        ("label", pa.int32()),
        ("predicted", pa.int32()),
    ]
)


def test_schema(dim: int) -> pa.Schema:
    return pa.schema([("index", pa.int32()), ("image", vector_type(dim))])


def views_schema(dim: int) -> pa.Schema:
    """The augmented training views: one row per draw (classes it is for, shots, seed), epoch and
    drawn picture.
    """
    return pa.schema(
        [
            ("classes", pa.string()),
            ("shots", pa.int32()),
            ("seed", pa.int32()),
            ("epoch", pa.int32()),
            ("index", pa.int32()),
            ("image", vector_type(dim)),
        ]
    )


# The files of every test picture and of every drawn picture, for methods that need more than
# features.
PICTURES = pa.schema([("index", pa.int32()), ("picture", pa.binary())])


def labelled_schema(dim: int) -> pa.Schema:
    """A labelled dataset to draw tasks from: one row per picture, class and domain from 0."""
    return pa.schema(
        [
            ("key", pa.string()),
            ("topic", pa.int32()),
            ("name", pa.string()),
            ("domain", pa.int32()),
            ("image", vector_type(dim)),
            ("picture", pa.binary()),
        ]
    )


# Accuracy after an epoch of tuning, as CSV: a source without base classes has no row to tell the
# types from.
EPOCHS = {
    "source": pl.String,
    "shots": pl.Int32,
    "seed": pl.Int32,
    "epoch": pl.Int32,
    "head": pl.String,
    "top1": pl.Float64,
}
