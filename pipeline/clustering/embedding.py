"""Sentence embeddings of the kept captions."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Callable
from functools import partial
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from sentence_transformers import SentenceTransformer
from transformers import PreTrainedTokenizerBase

from pipeline.artifacts import (
    numbered,
    read_table,
    shard_paths,
    to_vectors,
    usable,
    vector_dim,
    write_table,
)
from pipeline.clustering.params import Embed
from pipeline.clustering.schemas import sentences_schema
from pipeline.device import FEWER_PICTURES, at_once, device, within_memory
from pipeline.engine import mapped
from pipeline.errors import InputError
from pipeline.pairs.schemas import KEPT

SHARD_ROWS = 20_000  # vectors of a shard: captions that read alike share one
TOKENISED = 50_000  # captions at a time


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


def _spelling(text: str) -> str:
    """What is left of a text without case, accents and surplus spaces, which an encoder may drop
    on purpose.
    """
    plain = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return " ".join(plain.casefold().split())


def read_alike(tokenizer, texts: list[str], most: int) -> pl.DataFrame:
    """What an encoder makes of n distinct texts.

    Args:
        tokenizer: the encoder's own; one that is not Hugging Face's is asked nothing, and only
        equal texts read alike. most: tokens that the encoder reads of a text.

    Returns:
        n rows: text; vector, the number of what is read, from 0 in order of first appearance: equal
        where texts read alike to the encoder; unknown, whether half of its tokens or more are the
        encoder's sign for what it does not know; coincides, whether such a sign makes it read like
        a text of other letters.
    """
    read, signs, tokens = [], [], []
    for start in range(0, len(texts), TOKENISED):
        part = texts[start : start + TOKENISED]
        if not isinstance(tokenizer, PreTrainedTokenizerBase):  # one that tells nothing of itself
            read += [text.encode() for text in part]
            signs += [0] * len(part)
            tokens += [1] * len(part)
            continue
        for row in tokenizer(part, truncation=True, max_length=most, add_special_tokens=False)[
            "input_ids"
        ]:
            read.append(blake2b(np.array(row, np.int32).tobytes(), digest_size=16).digest())
            signs.append(row.count(tokenizer.unk_token_id))
            tokens.append(len(row))
    return (
        pl.DataFrame({"text": texts, "read": read, "signs": signs, "tokens": tokens})
        .with_row_index("row")
        .with_columns(
            vector=pl.col("row").min().over("read").rank("dense").cast(pl.Int64) - 1,
            spelling=pl.Series(map(_spelling, texts), dtype=pl.String),
        )
        .select(
            "text",
            "vector",
            unknown=(pl.col("signs") > 0) & (2 * pl.col("signs") >= pl.col("tokens")),
            coincides=(pl.col("signs") > 0) & (pl.col("spelling").n_unique().over("vector") > 1),
        )
    )


def text_vectors(settings: Embed) -> Callable[[list[str]], np.ndarray]:
    """The encoder of n texts → (n, d) L2-normalised float32 vectors, in either precision."""
    where, batch = device(), at_once(128)
    encoder = SentenceTransformer(model_path(settings.model), device=str(where))
    fast = settings.precision == "bf16"

    def encode(texts: list[str]) -> np.ndarray:
        with (
            within_memory(FEWER_PICTURES.format(batch)),
            torch.autocast(where.type, torch.bfloat16, enabled=fast),
        ):
            return encoder.encode(
                texts,
                batch_size=batch,
                normalize_embeddings=True,
                show_progress_bar=sys.stderr.isatty(),
            )

    return encode


def _encoder(
    settings: Embed, parts: list[tuple[list[str], pl.DataFrame]]
) -> Callable[[int], pa.Table]:
    encoded = text_vectors(settings)

    def encode(shard: int) -> pa.Table:
        texts, rows = parts[shard]
        vectors = encoded(texts)
        of_row = rows["vector"].to_numpy()
        kept = usable(vectors)[of_row]
        return pa.table(
            [
                rows["key"].to_arrow().cast(pa.string()).filter(pa.array(kept)),
                to_vectors(vectors[of_row[kept]]),
            ],
            schema=sentences_schema(vectors.shape[1]),
        )

    return encode


def _parts(table: pl.DataFrame) -> list[tuple[list[str], pl.DataFrame]]:
    """The texts of each shard's vectors, and the captions that they belong to, in key order.

    Args:
        table: key, caption, vector: captions that read alike to the encoder have one number.
    """
    first = table.unique("vector", keep="first", maintain_order=True)["caption"].to_list()
    shards = table.with_columns(shard=pl.col("vector") // SHARD_ROWS).partition_by(
        "shard", as_dict=True
    )
    return [
        (
            first[shard * SHARD_ROWS : (shard + 1) * SHARD_ROWS],
            shards[(shard,)].select("key", vector=pl.col("vector") - shard * SHARD_ROWS),
        )
        for shard in range(len(shards))
    ]


def embed_captions(kept: Path, work: Path, settings: Embed, progress) -> dict[str, int]:
    """Writes work/NNNNN.parquet (key, embedding) for each shard of kept captions that is not there
    yet.

    Captions that read alike to the encoder have exactly the same vector, wherever they stand: it is
    made once. A caption whose vector is not finite, or zero, is left out. Keys are in order within
    a shard; over the shards only where no caption repeats.

    Returns:
        Number of captions with a vector, of dimensions, of distinct vectors, of captions without;
        of captions of which the encoder knows less than half (unknown), and that it does not tell
        from others (coinciding).

    Raises:
        InputError if no caption is kept, or none has a vector.
    """
    table = pl.from_arrow(read_table(kept, KEPT, ["key", "caption", "kept"])).filter("kept")
    if not len(table):
        raise InputError(f"{kept}: no pair is kept; look why the filter drops all of them")
    encoder = SentenceTransformer(model_path(settings.model))
    alike = read_alike(
        encoder.tokenizer,
        table["caption"].unique(maintain_order=True).to_list(),
        encoder.max_seq_length or sys.maxsize,
    )
    table = table.join(alike, left_on="caption", right_on="text", maintain_order="left")
    parts = _parts(table)
    missing = {
        shard: out
        for shard in range(len(parts))
        if not (out := work / f"{shard:05d}.parquet").exists()
    }
    for shard, embeddings in progress(
        mapped(partial(_encoder, settings, parts), list(missing), gpu=True),
        "embedding",
        total=len(missing),
    ):
        schema = numbered(embeddings.schema, shard, len(parts))
        write_table(embeddings, missing[shard], schema)
    paths = shard_paths(work)
    captions = sum(pq.read_metadata(path).num_rows for path in paths)
    if not captions:
        raise InputError(
            f"parameter 'embed.model': '{settings.model}' gives none of {len(table)} captions a "
            "finite vector; its weights are damaged, take another copy"
        )
    return {
        "captions": captions,
        "dimensions": vector_dim(paths[0], "embedding"),
        "distinct": int(table["vector"].n_unique()),
        "without_vector": len(table) - captions,
        "unknown": int(table["unknown"].sum()),
        "coinciding": int(table["coincides"].sum()),
    }
