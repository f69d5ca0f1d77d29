"""Readers of the pairs' shards, shared by every later room."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from pipeline.artifacts import (
    check_usable,
    from_vectors,
    read_table,
    remedy,
    shard_paths,
    vector_dim,
)
from pipeline.errors import InputError
from pipeline.pairs.schemas import features_schema
from pipeline.pairs.tars import read_at, tar_files


def read_pictures(shard: Path) -> Iterator[tuple[str, bytes]]:
    """(key, JPEG bytes) of one shard, in key order."""
    for member, content in tar_files(shard):
        if member.name.endswith(".jpg"):
            yield member.name.removesuffix(".jpg"), content.read()


@dataclass(frozen=True)
class Located:
    """Where pictures lie in the shards, so that each can be read by itself, from any thread.

    Attributes:
        paths: the tar files. file: (n,) which of them holds each picture. offset, size: (n,) where
        in it, in bytes.
    """

    paths: Sequence[Path]
    file: np.ndarray
    offset: np.ndarray
    size: np.ndarray

    def read(self, rows: np.ndarray) -> list[bytes]:
        """JPEG bytes of some of the pictures."""
        places = zip(
            self.file[rows].tolist(),
            self.offset[rows].tolist(),
            self.size[rows].tolist(),
            strict=True,
        )
        return [read_at(self.paths[file], offset, size) for file, offset, size in places]


def locate_pictures(
    folder: Path, keys: Sequence[str], shards: Sequence[str | None], rows: np.ndarray, progress
) -> Located:
    """Finds some of n pictures by the headers of the tar files alone.

    Args:
        keys, shards: (n,) the pictures, and the name of the file in `folder` that holds each.
        rows: which of them; the others' places stay −1.

    Raises:
        InputError naming the file if it is missing or incomplete, or lacks a picture.
    """
    wanted: dict[str, dict[str, int]] = {}
    for row in rows.tolist():
        if shards[row] is None:
            raise InputError(
                f"{folder}: the index names no file for picture '{keys[row]}'; run `dvc repro` so "
                "that all files come from one run"
            )
        wanted.setdefault(shards[row], {})[f"{keys[row]}.jpg"] = row
    names = sorted(wanted)
    file, offset, size = (np.full(len(keys), -1, kind) for kind in (np.int32, np.int64, np.int64))
    for number, name in enumerate(progress(names, "finding pictures")):
        missing, path = wanted.pop(name), folder / name
        try:
            for member, _ in tar_files(path):
                if (row := missing.pop(member.name, None)) is not None:
                    file[row], offset[row], size[row] = number, member.offset_data, member.size
        except FileNotFoundError:
            raise InputError(f"{path}: missing; run `dvc repro` again") from None
        if missing:
            raise InputError(
                f"{path}: holds no picture '{next(iter(missing))}', which the index names; delete "
                "the folder and run `dvc repro` again"
            )
    return Located([folder / name for name in names], file, offset, size)


def read_features(folder: Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Keys, (n, e) image and (n, e) text features of all shards, in key order; rows of NaN where
    the backbone gave none.

    Raises InputError naming the key of a vector that is there and is zero or not finite.
    """
    paths = shard_paths(folder)
    dim = vector_dim(paths[0], "image")
    table = pa.concat_tables([read_table(p, features_schema(dim)) for p in paths]).sort_by("key")
    keys = table["key"].to_pylist()
    image, text = (_checked(table[column], keys, folder) for column in ("image", "text"))
    return keys, image, text


def _checked(column: pa.ChunkedArray, keys: list[str], folder: Path) -> np.ndarray:
    vectors = from_vectors(column)
    there = np.flatnonzero(np.asarray(column.is_valid()))
    check_usable(vectors[there], [keys[row] for row in there], folder)
    return vectors


def read_image_features(folder: Path, keys: pl.Series) -> np.ndarray:
    """(n, e) image features of the pairs `keys`, float16 as they are stored; beside them, one shard
    at a time is in memory.

    Raises InputError naming the key if a pair has none, or one that is zero or not finite.
    """
    paths = shard_paths(folder)
    dim = vector_dim(paths[0], "image")
    found, missing = np.empty((len(keys), dim), np.float16), np.ones(len(keys), bool)
    place = pl.DataFrame({"key": keys, "row": np.arange(len(keys))})
    for path in paths:
        table = read_table(path, features_schema(dim), ["key", "image"])
        here = pl.DataFrame({"key": pl.from_arrow(table["key"]), "at": np.arange(len(table))}).join(
            place, on="key"
        )
        found[here["row"].to_numpy()] = from_vectors(table["image"])[here["at"].to_numpy()]
        missing[here["row"].to_numpy()] = False
    if missing.any():
        raise InputError(
            f"{folder}: holds no features of pair '{keys[int(missing.argmax())]}'; {remedy(folder)}"
        )
    check_usable(found, keys, folder)
    return found
