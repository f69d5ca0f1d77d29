"""Readers of the pairs' shards, shared by every later room."""

from __future__ import annotations

from pathlib import Path
from typing import Iterator

import numpy as np
import pyarrow as pa

from pipeline.artifacts import from_vectors, read_table, shard_paths, vector_dim
from pipeline.pairs.schemas import features_schema
from pipeline.pairs.tars import tar_files


def read_pictures(shard: Path) -> Iterator[tuple[str, bytes]]:
    """(key, JPEG bytes) of one shard, in key order."""
    for member, content in tar_files(shard):
        if member.name.endswith(".jpg"):
            yield member.name.removesuffix(".jpg"), content.read()


def read_features(folder: Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Keys, (n, e) image and (n, e) text features of all shards, in key order."""
    paths = shard_paths(folder)
    dim = vector_dim(paths[0], "image")
    table = pa.concat_tables([read_table(p, features_schema(dim)) for p in paths]).sort_by("key")
    return table["key"].to_pylist(), from_vectors(table["image"]), from_vectors(table["text"])
