"""Sentence embeddings of the kept captions."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import polars as pl
import pyarrow as pa
from sentence_transformers import SentenceTransformer

from pipeline.artifacts import read_table, shard_paths, to_vectors, vector_dim, write_table
from pipeline.clustering.schemas import sentences_schema
from pipeline.engine import mapped
from pipeline.errors import InputError
from pipeline.pairs.schemas import KEPT

SHARD_ROWS = 20_000


def model_path(name: str) -> str:
    """`package:NAME/FOLDER` → the folder inside the installed package; anything else as it is."""
    if not name.startswith("package:"):
        return name
    package, _, inside = name.removeprefix("package:").partition("/")
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            f"parameter 'embed.model': no installed package '{package}'; install it or name a "
            "folder"
        )
    return str(Path(spec.submodule_search_locations[0]) / inside)


def _encoder(model: str, parts: list[pl.DataFrame]) -> Callable[[int], pa.Table]:
    encoder = SentenceTransformer(model_path(model))

    def encode(shard: int) -> pa.Table:
        rows = parts[shard]
        vectors = encoder.encode(
            rows["caption"].to_list(),
            batch_size=128,
            normalize_embeddings=True,
            show_progress_bar=sys.stderr.isatty(),
        )
        return pa.table(
            [rows["key"].to_arrow().cast(pa.string()), to_vectors(vectors)],
            schema=sentences_schema(vectors.shape[1]),
        )

    return encode


def embed_captions(kept: Path, work: Path, model: str, progress) -> tuple[int, int]:
    """Writes work/NNNNN.parquet (key, embedding) for each shard of kept captions that is not there
    yet.

    Returns:
        Number of captions, and of dimensions.
    """
    table = pl.from_arrow(read_table(kept, KEPT, ["key", "caption", "kept"])).filter("kept")
    parts = list(table.iter_slices(SHARD_ROWS))
    missing = {
        shard: out
        for shard in range(len(parts))
        if not (out := work / f"{shard:05d}.parquet").exists()
    }
    for shard, embeddings in progress(
        mapped(partial(_encoder, model, parts), list(missing), gpu=True),
        "embedding",
        total=len(missing),
    ):
        write_table(embeddings, missing[shard], embeddings.schema)
    return len(table), vector_dim(shard_paths(work)[0], "embedding")
