"""One row per caption: what its link gave, and whether the picture is whole."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import polars as pl
import pyarrow as pa

from pipeline.artifacts import read_table, remedy, shard_paths, write_table
from pipeline.errors import InputError
from pipeline.image_file import Unreadable, open_picture
from pipeline.pairs.schemas import CAPTIONS, FETCHED, PAIRS
from pipeline.pairs.tars import tar_files
from pipeline.stage import workers

# What a look at the pictures of a shard gives.
LOOKED_AT = pa.schema(
    [
        ("key", pa.string()),
        ("picture", pa.string()),
        ("shard", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("bytes", pa.int32()),
        ("sha256", pa.string()),
        ("complaint", pa.string()),
    ]
)


def inspect(picture: bytes) -> tuple[int | None, int | None, str | None]:
    """(width, height, None), or (None, None, complaint) if the picture cannot be decoded to its
    end.
    """
    try:
        return *open_picture(picture).size, None
    except Unreadable as unreadable:
        error = unreadable.__cause__ or unreadable  # Pillow's own words
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


def _pictures_of(shard: Path) -> pa.Table:
    """One row for each picture's name in a shard; a picture of several names is looked at once."""
    rows: list[tuple] = []
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
    columns = zip(*rows, strict=True) if rows else [[]] * len(LOOKED_AT)
    return pa.table(
        [pa.array(c, f.type) for c, f in zip(columns, LOOKED_AT, strict=True)], LOOKED_AT
    )


def _pictures(shards: Path, work: Path | None, progress) -> pl.DataFrame:
    """The rows of all shards, of which as many are read at once as there are threads; those whose
    rows are in `work` are not read again.
    """
    paths = shard_paths(shards, ".tar")

    def look(shard: Path) -> pa.Table:
        part = work / f"{shard.stem}.parquet" if work else None
        if part and part.exists():
            return read_table(part, LOOKED_AT)
        table = _pictures_of(shard)
        if part:
            write_table(table, part, LOOKED_AT)
        return table

    threads = ThreadPoolExecutor(workers("OMP_NUM_THREADS"))
    try:
        parts = list(progress(threads.map(look, paths), "indexing", total=len(paths)))
    finally:
        # an error or interruption waits for the shards under way, not for all
        threads.shutdown(cancel_futures=True)
    return pl.from_arrow(pa.concat_tables(parts))


def _check_complete(shards: Path, wanted: pl.Series, found: pl.Series, what: str) -> None:
    """Raises InputError if keys are in one of two lists alone."""
    for here, there, words in ((wanted, found, "no"), (found, wanted, "an unknown")):
        if len(lost := here.filter(~here.is_in(there.implode()))):
            raise InputError(
                f"{shards}: {words} {what} for key '{lost[0]}' ({len(lost)} such keys); "
                f"{remedy(shards)}"
            )


def index_pairs(
    captions: Path, shards: Path, progress, work: Path | None = None
) -> tuple[pa.Table, dict[str, int]]:
    """Joins captions, fetch results and pictures by key. What a shard holds is written to
    work/NNNNN.parquet, unless it is there.

    Returns:
        The table of `PAIRS`, with `PICTURE` if pictures have several captions, and how many pairs
        have each status.

    Raises:
        InputError naming a key that one of them lacks.
    """
    pictures = _pictures(shards, work, progress)
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
