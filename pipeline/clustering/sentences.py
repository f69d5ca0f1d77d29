"""Reader of the sentence embeddings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from pipeline.artifacts import check_usable, read_shards, read_table, shard_paths, vector_dim
from pipeline.clustering.schemas import sentences_schema
from pipeline.errors import InputError


def read_sentences(folder: Path) -> tuple[pa.Array, np.ndarray]:
    """(n,) keys of all shards in order, and their (n, d) float16 vectors; beside them, one shard at
    a time is in memory.

    Raises:
        InputError naming the key if one comes twice, or its vector is zero or not finite.
    """
    paths = shard_paths(folder)
    dim = vector_dim(paths[0], "embedding")
    schema = sentences_schema(dim)
    keys = pl.from_arrow(read_shards(folder, schema, ["key"]))["key"]
    # (n,) where each row belongs
    place = None if keys.is_sorted() else np.argsort(keys.arg_sort().to_numpy())
    vectors, start = np.empty((len(keys), dim), np.float16), 0
    for path in paths:
        table = read_table(path, schema)
        column = table["embedding"].combine_chunks()
        part = np.asarray(column.flatten()).reshape(-1, dim)
        check_usable(part, table["key"].to_pylist(), path)
        stop = start + len(part)
        vectors[slice(start, stop) if place is None else place[start:stop]] = part
        start = stop
    keys = keys.sort()
    twice = keys.filter(keys == keys.shift())
    if len(twice):
        raise InputError(
            f"{folder}: holds '{twice[0]}' more than once; delete the folder and run `dvc repro "
            "embed`"
        )
    return keys.to_arrow().cast(pa.string()), vectors
