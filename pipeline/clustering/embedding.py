"""Sentence embeddings of the kept captions."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import polars as pl
import pyarrow as pa
from sentence_transformers import SentenceTransformer

from pipeline.artifacts import read_table, to_vectors, write_table
from pipeline.clustering.schemas import sentences_schema
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
        raise InputError(f"parameter 'embed.model': no installed package '{package}'; install it or name a folder")
    return str(Path(spec.submodule_search_locations[0]) / inside)


def embed_captions(kept: Path, work: Path, model: str, progress) -> tuple[int, int]:
    """Writes work/NNNNN.parquet (key, embedding) for each shard of kept captions that is not there yet.

    Returns:
        Number of captions, and of dimensions.
    """
    table = pl.from_arrow(read_table(kept, KEPT, ["key", "caption", "kept"])).filter("kept")
    encoder = SentenceTransformer(model_path(model))
    dim = encoder.get_embedding_dimension()
    for shard, rows in enumerate(progress(list(table.iter_slices(SHARD_ROWS)), "embedding")):
        out = work / f"{shard:05d}.parquet"
        if not out.exists():
            vectors = encoder.encode(rows["caption"].to_list(), batch_size=128, normalize_embeddings=True, show_progress_bar=sys.stderr.isatty())
            schema = sentences_schema(dim)
            write_table(pa.table([rows["key"].to_arrow().cast(pa.string()), to_vectors(vectors)], schema=schema), out, schema)
    return len(table), dim
