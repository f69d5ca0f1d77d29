"""img2dataset's shards made into ones whose bytes depend on the pictures alone."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq

from pipeline.artifacts import replacing
from pipeline.errors import InputError

RAW = ["key", "pair_key", "status", "error_message"]


def statuses(part: Path) -> pl.DataFrame:
    """img2dataset's key, `picture`, status and error of every link of a shard."""
    return pl.from_arrow(pq.read_table(part, columns=RAW)).rename(
        {"pair_key": "picture", "error_message": "error"}
    )


def forget(raw: Path, work: Path, name: str) -> None:
    """So that the next run fetches this shard anew."""
    for path in (
        raw / f"{name}_stats.json",
        raw / f"{name}.parquet",
        raw / f"{name}.tar",
        work / f"{name}.tar",
    ):
        path.unlink(missing_ok=True)


def _entry(name: str, size: int = 0) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.size = size
    return entry


def normalise(shard: Path, out: Path, asked: pl.DataFrame) -> None:
    """img2dataset's shard (rows as they came in, with today's date) → one sorted by key, without
    dates: `<key>.jpg` and `<key>.txt` for each caption.

    A picture of several captions is there once, under the first one's key; the other ones' names
    are hard links to it.

    Args:
        asked: key, caption, picture (the first key with the same URL) of all captions.

    Raises:
        InputError if pictures are missing that were fetched; then the next run fetches them again.
    """
    if not shard.exists() and out.exists():
        return  # done before an interruption
    fetched = statuses(shard.with_suffix(".parquet")).filter(pl.col("status") == "success")
    names = dict(fetched.select("picture", "key").iter_rows())
    rows = asked.filter(pl.col("picture").is_in(fetched["picture"].implode())).sort("key")
    try:
        with (
            tarfile.open(shard) as raw,
            replacing(out) as temporary,
            tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as clean,
        ):
            members = {m.name: m for m in raw.getmembers()}
            for key, caption, picture in rows.select("key", "caption", "picture").iter_rows():
                if key == picture:
                    file = raw.extractfile(members[f"{names[key]}.jpg"])
                    content = file.read() if file else b""
                    clean.addfile(_entry(f"{key}.jpg", len(content)), io.BytesIO(content))
                else:
                    link = _entry(f"{key}.jpg")
                    link.type, link.linkname = tarfile.LNKTYPE, f"{picture}.jpg"
                    clean.addfile(link)
                text = caption.encode()
                clean.addfile(_entry(f"{key}.txt", len(text)), io.BytesIO(text))
    except (KeyError, FileNotFoundError, tarfile.TarError) as error:
        forget(shard.parent, out.parent, shard.stem)
        raise InputError(
            f"{shard}: pictures are missing that were fetched ({error}); run the stage again: it "
            "fetches this shard's anew"
        ) from None
    shard.unlink()
