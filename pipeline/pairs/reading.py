"""Readers of the pairs' shards, shared by every later room."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from pipeline.artifacts import (
    Keep,
    check_usable,
    from_vectors,
    made_anew,
    open_table,
    read_shards,
    read_table,
    remedy,
    shard_paths,
    vector_dim,
    write_table,
)
from pipeline.errors import InputError
from pipeline.pairs.schemas import PAIRS, PICTURE, features_schema
from pipeline.pairs.tars import read_at, tar_files

PARTS = 20  # of the files in which pictures are looked for


def read_pictures(shard: Path) -> Iterator[tuple[str, bytes]]:
    """(key, JPEG bytes) of one shard, in key order."""
    for member, content in tar_files(shard):
        if member.name.endswith(".jpg"):
            yield member.name.removesuffix(".jpg"), content.read()


def read_pairs(path: Path, columns: Sequence[str] = PAIRS.names) -> pl.DataFrame:
    """`columns` of the table of `PAIRS`, the key among them, and `picture`, the key that a row's
    picture has in its shard: where no picture is shared (the file then has no such column), the
    row's own.
    """
    shared = PICTURE.name in open_table(path, PAIRS).schema_arrow.names
    schema = PAIRS.append(PICTURE) if shared else PAIRS
    table = pl.from_arrow(read_table(path, schema, [*columns, *[PICTURE.name] * shared]))
    return table if shared else table.with_columns(picture="key")


def write_pairs(pairs: pa.Table, path: Path) -> None:
    """Writes what `read_pairs` reads."""
    shared = PICTURE.name in pairs.column_names
    write_table(pairs, path, PAIRS.append(PICTURE) if shared else PAIRS)


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
    folder: Path,
    keys: Sequence[str],
    shards: Sequence[str | None],
    rows: np.ndarray,
    progress,
    keep: Keep = made_anew,
) -> Located:
    """Finds some of n pictures by the headers of the tar files alone.

    Args:
        keys, shards: (n,) the pictures, and the name of the file in `folder` that holds each.
        rows: which of them; the others' places stay −1.
        keep: is given what each twentieth of the files holds.

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
    names, places = sorted(wanted), np.full((3, len(keys)), -1)
    parts = np.array_split(np.arange(len(names)), min(PARTS, len(names)) or 1)
    for number, part in enumerate(progress(parts, "finding pictures")):
        find = partial(_places, folder, {n: (names[n], wanted[names[n]]) for n in part.tolist()})
        ((row, *place),) = keep(f"places-{number}", find)
        places[:, row] = place
    return Located([folder / name for name in names], *places)


def _places(folder: Path, wanted: dict[int, tuple[str, dict[str, int]]]) -> tuple[np.ndarray]:
    """(4, p) row, number of the file, offset and size of the members of some files; wanted: a
    file's number → its name, and the row of each member.
    """
    found = []
    for number, (name, members) in wanted.items():
        missing, path = dict(members), folder / name
        try:
            for member, _ in tar_files(path):
                if (row := missing.pop(member.name, None)) is not None:
                    found.append((row, number, member.offset_data, member.size))
        except FileNotFoundError:
            raise InputError(f"{path}: missing; run `dvc repro` again") from None
        if missing:
            raise InputError(
                f"{path}: holds no picture '{next(iter(missing))}', which the index names; delete "
                "the folder and run `dvc repro` again"
            )
    return (np.array(found, np.int64).reshape(-1, 4).T,)


@dataclass(frozen=True)
class Features:
    """The features of n pairs, in key order.

    Attributes:
        keys: (n,). image, text: (n, e) float16; no text where it was not asked for. own: (n,)
        float32 similarity of each pair's picture with its caption.
    """

    keys: pl.Series
    image: np.ndarray
    text: np.ndarray | None
    own: np.ndarray


def read_features(folder: Path, texts: bool = True, keep: Keep = made_anew) -> Features:
    """All shards; beside the result, one shard at a time is in memory.

    `keep` is given all but the keys: shards are unpacked at a few hundred MB a second at best.

    Raises InputError naming the key of a vector that is zero or not finite, or that comes twice.
    """
    schema = features_schema(vector_dim(shard_paths(folder)[0], "image"))
    keys = pl.from_arrow(read_shards(folder, schema, ["key"]))["key"]
    own, image, *text = keep("features", partial(_vectors, folder, keys, schema, texts))
    keys = keys.sort()
    if len(twice := keys.filter(keys == keys.shift())):
        raise InputError(f"{folder}: holds '{twice[0]}' more than once; {remedy(folder)}")
    return Features(keys, image, text[0] if texts else None, own)


def _vectors(
    folder: Path, keys: pl.Series, schema: pa.Schema, texts: bool
) -> tuple[np.ndarray, ...]:
    """`Features`' own, image and, where they are asked for, text, in the order of the sorted keys;
    `keys` are as the shards have them.
    """
    # (n,) where each row belongs
    place = None if keys.is_sorted() else np.argsort(keys.arg_sort().to_numpy())
    dim = schema.field("image").type.list_size
    image, own = np.empty((len(keys), dim), np.float16), np.empty(len(keys), np.float32)
    text, start = np.empty_like(image) if texts else None, 0
    for path in shard_paths(folder):
        table = read_table(path, schema)
        rows: slice | np.ndarray = slice(start, start + len(table))
        rows = rows if place is None else place[rows]
        seen, said = from_vectors(table["image"]), from_vectors(table["text"])
        for part in (seen, said):
            check_usable(part, table["key"].to_pylist(), path)
        own[rows], image[rows] = np.einsum("nd,nd->n", seen, said), seen
        if text is not None:
            text[rows] = said
        start += len(table)
    return (own, image) if text is None else (own, image, text)


def left_out(shard: Path) -> dict[str, list[str]]:
    """Keys of the pairs that a shard of features lacks, as the backbone gave no direction for
    their "image" or "text".
    """
    noted = open_table(shard, pa.schema([])).schema_arrow.metadata or {}
    return {
        column: noted[name].decode().split()
        for column in ("image", "text")
        if (name := f"unusable_{column}".encode()) in noted
    }


def read_image_features(folder: Path, keys: pl.Series, keep: Keep = made_anew) -> np.ndarray:
    """(n, e) image features of the pairs `keys`, float16 as they are stored; beside them, one shard
    at a time is in memory. `keep` is given them, as in `read_features`.

    Raises InputError naming the key if a pair has none, or one that is zero or not finite.
    """
    return keep("features", lambda: (_image_vectors(folder, keys),))[0]


def _image_vectors(folder: Path, keys: pl.Series) -> np.ndarray:
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
