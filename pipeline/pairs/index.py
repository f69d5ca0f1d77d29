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
from pipeline.pairs.schemas import CAPTIONS, FETCHED, PAIRS
from pipeline.pairs.tars import tar_files
from pipeline.upright import upright


def inspect(picture: bytes) -> tuple[int | None, int | None, str | None]:
    """(width, height, None), or (None, None, complaint) if the picture cannot be decoded to its
    end.
    """
    try:
        with Image.open(io.BytesIO(picture)) as image:
            return *upright(image).size, None
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


def _pictures(shards: Path, progress) -> pl.DataFrame:
    """One row for each picture's name in the shards; a picture of several names is looked at
    once.
    """
    rows: list[tuple] = []
    for shard in progress(shard_paths(shards, ".tar"), "indexing"):
        known: dict[str, tuple] = {}
        for member, content in tar_files(shard):
            key, _, kind = member.name.rpartition(".")
            if kind != "jpg":
                continue
            owner = member.linkname.removesuffix(".jpg") or key
            if owner not in known:
                picture = content.read()
                size = inspect(picture)
                digest = hashlib.sha256(picture).hexdigest()
                known[owner] = (*size[:2], len(picture), digest, size[2])
            rows.append((key, owner, shard.name, *known[owner]))
    columns = [
        ("key", pl.String),
        ("picture", pl.String),
        ("shard", pl.String),
        ("width", pl.Int32),
        ("height", pl.Int32),
        ("bytes", pl.Int32),
        ("sha256", pl.String),
        ("complaint", pl.String),
    ]
    return pl.DataFrame(rows, schema=columns, orient="row")


def _check_complete(shards: Path, wanted: pl.Series, found: pl.Series, what: str) -> None:
    """Raises InputError if keys are in one of two lists alone."""
    for here, there, words in ((wanted, found, "no"), (found, wanted, "an unknown")):
        if len(lost := here.filter(~here.is_in(there.implode()))):
            raise InputError(
                f"{shards}: {words} {what} for key '{lost[0]}' ({len(lost)} such keys); "
                f"{remedy(shards)}"
            )


def index_pairs(captions: Path, shards: Path, progress) -> tuple[pa.Table, dict[str, int]]:
    """Joins captions, fetch results and pictures by key.

    Returns:
        The table of `PAIRS`, with `PICTURE` if pictures have several captions, and how many pairs
        have each status.

    Raises:
        InputError naming a key that one of them lacks.
    """
    pictures = _pictures(shards, progress)
    fetched = pl.from_arrow(read_table(shards / "fetched.parquet", FETCHED))
    table = pl.from_arrow(read_table(captions, CAPTIONS))
    _check_complete(shards, table["key"], fetched["key"], "fetch result")
    whole = fetched.filter(pl.col("status") == "success")["key"]
    _check_complete(shards, whole, pictures["key"], "picture")
    pairs = (
        table.join(fetched, on="key", how="left", validate="1:1")
        .join(pictures, on="key", how="left", validate="1:1")
        .with_columns(
            status=pl.when(pl.col("complaint").is_not_null())
            .then(pl.lit("broken"))
            .otherwise("status"),
            error=pl.coalesce("complaint", "error"),
        )
        .sort("key")
    )
    counts = dict(pairs.group_by("status").len().sort("status").iter_rows())
    shared = (pairs["picture"] != pairs["key"]).any()
    return pairs.select(PAIRS.names + ["picture"] * shared).to_arrow(), counts
