"""What evaluation leaves for each method: a table of verdicts and one of accuracy per epoch for
every source.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import polars as pl
import pyarrow as pa

from pipeline.artifacts import read_table, replacing, write_table
from pipeline.benchmarks.schemas import EPOCHS, VERDICTS


def save_judged(judged: tuple[pa.Table, pl.DataFrame], folder: Path, source: str) -> None:
    """Writes <source>.parquet (`VERDICTS`) and <source>.csv (accuracy after epochs of tuning)."""
    table, epochs = judged
    with replacing(folder / f"{source}.csv") as temporary:
        epochs.write_csv(temporary, float_precision=4)
    write_table(table, folder / f"{source}.parquet", VERDICTS)


def judged_files(sources: Iterable[str]) -> list[str]:
    """Names of the files that a method's folder has."""
    return [f"{source}.{kind}" for source in sources for kind in ("csv", "parquet")]


def read_verdicts(folder: Path, sources: Iterable[str]) -> pl.DataFrame:
    """`VERDICTS` of one method on all sources."""
    found = [read_table(folder / f"{source}.parquet", VERDICTS) for source in sources]
    return pl.from_arrow(pa.concat_tables([VERDICTS.empty_table(), *found]))


def read_epochs(folder: Path, sources: Iterable[str]) -> pl.DataFrame:
    """source, shots, seed, epoch, head, top1 of one method."""
    found = [pl.read_csv(folder / f"{source}.csv", schema=EPOCHS) for source in sources]
    return pl.concat([pl.DataFrame(schema=EPOCHS), *found])
