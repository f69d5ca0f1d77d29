"""One row per caption: what its link gave, and whether the picture is whole."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import polars as pl
import pyarrow as pa
from PIL import Image

from pipeline.artifacts import read_table, remedy, shard_paths
from pipeline.errors import InputError
from pipeline.pairs.reading import read_pictures
from pipeline.pairs.schemas import CAPTIONS, FETCHED, PAIRS


def inspect(picture: bytes) -> tuple[int | None, int | None, str | None]:
    """(width, height, None), or (None, None, complaint) if the picture cannot be decoded to its
    end.
    """
    try:
        with Image.open(io.BytesIO(picture)) as image:
            image.load()
            return image.width, image.height, None
    # PIL raises many kinds for damaged files; each is the picture's own fault
    except Exception as error:
        return None, None, str(error).partition("(")[0].strip()


def failure_reasons(pairs: pl.DataFrame, most: int = 10) -> dict[str, int]:
    """How many pairs have no picture for which reason, the commonest first; reasons after the
    first `most` are counted as one.
    """
    reason = (
        pl.col("error")
        .str.replace(r"^<urlopen error (.*)>$", "$1")
        .str.replace(r"^\[Errno -?\d+\] ", "")
        .str.strip_chars()
    )
    failed = (
        pairs.filter(pl.col("status") != "success")
        .group_by(reason.alias("reason"))
        .len()
        .sort("len", "reason", descending=[True, False])
    )
    found = dict(failed.head(most).iter_rows())
    return found | (
        {"other reasons": rest} if (rest := failed["len"].sum() - sum(found.values())) else {}
    )


def index_pairs(captions: Path, shards: Path, progress) -> tuple[pa.Table, dict[str, int]]:
    """Joins captions, fetch results and pictures by key.

    Returns:
        The table of `PAIRS`, and how many pairs have each status.
    """
    rows = []
    for shard in progress(shard_paths(shards, ".tar"), "indexing"):
        for key, picture in read_pictures(shard):
            width, height, complaint = inspect(picture)
            rows.append(
                (
                    key,
                    shard.name,
                    width,
                    height,
                    len(picture),
                    hashlib.sha256(picture).hexdigest(),
                    complaint,
                )
            )
    columns = [
        ("key", pl.String),
        ("shard", pl.String),
        ("width", pl.Int32),
        ("height", pl.Int32),
        ("bytes", pl.Int32),
        ("sha256", pl.String),
        ("complaint", pl.String),
    ]
    pictures = pl.DataFrame(rows, schema=columns, orient="row")
    fetched = pl.from_arrow(read_table(shards / "fetched.parquet", FETCHED))
    pairs = (
        pl.from_arrow(read_table(captions, CAPTIONS))
        .join(fetched, on="key", how="left", validate="1:1")
        .join(pictures, on="key", how="left", validate="1:1")
        .with_columns(
            status=pl.when(pl.col("complaint").is_not_null())
            .then(pl.lit("broken"))
            .otherwise("status"),
            error=pl.coalesce("complaint", "error"),
        )
        .sort("key")
    )
    lost = pairs.filter((pl.col("status") == "success") & pl.col("sha256").is_null())
    if len(lost):
        raise InputError(
            f"{shards}: no picture for key '{lost['key'][0]}' although it was fetched; "
            f"{remedy(shards)}"
        )
    counts = dict(pairs.group_by("status").len().sort("status").iter_rows())
    return pairs.select(PAIRS.names).to_arrow(), counts
