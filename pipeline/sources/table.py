"""Reads a table of captions and URLs, row by row, and says which rows cannot be used."""

from __future__ import annotations

import csv
import hashlib
import re
from pathlib import Path
from typing import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import InputError
from pipeline.pairs.schemas import CAPTIONS
from pipeline.sources.params import Source

KEY = re.compile(r"[A-Za-z0-9_-]{1,64}")


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(number of its last line, fields) of every row; [] for an empty one."""
    try:
        if path.suffix == ".csv":
            with open(path, encoding="utf-8-sig", newline="") as file:
                reader = csv.reader(file, strict=True)
                for row in reader:
                    yield reader.line_num, row
        else:
            # A TSV has no quoting: a `"` is a character like any other, as in Conceptual Captions.
            with open(path, encoding="utf-8-sig", newline="\n") as file:
                for number, line in enumerate(file, 1):
                    yield number, line.rstrip("\r\n").split("\t") if line.strip() else []
    except csv.Error as error:
        raise InputError(f"{path}: not valid CSV ({error}): a stray quote? Double it, or save the table as .tsv, where quotes mean nothing") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start}); convert it, e.g. with iconv") from None


def _rows(path: Path, columns: list[str] | None) -> tuple[list[str], Iterator[tuple[int, list[str] | None, str]]]:
    """Column names, and (row number as an editor counts, fields or None, complaint) for each row."""
    if path.suffix == ".parquet":
        try:
            table = pq.read_table(path)
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError(f"{path}: not a complete Parquet file ({str(error).splitlines()[0]}); obtain it again") from None
        return table.column_names, ((i, ["" if v is None else str(v) for v in row], "") for i, row in enumerate(zip(*(c.to_pylist() for c in table.columns)), 1))
    if path.suffix not in (".tsv", ".csv"):
        raise InputError(f"{path}: not a .tsv, .csv or .parquet file; convert it or name another one in 'source.table'")
    numbered = _lines(path)
    if columns is None:
        _, columns = next(numbered, (0, None))
        if not columns:
            raise InputError(f"{path}: is empty, or its first row is; obtain it again")

    def checked() -> Iterator[tuple[int, list[str] | None, str]]:
        for number, fields in numbered:
            if not fields:
                yield number, None, "is empty"
            elif len(fields) != len(columns):
                yield number, None, f"has {len(fields)} fields instead of {len(columns)} (a tab or a line break inside a caption?)"
            else:
                yield number, fields, ""

    return columns, checked()


def row_key(caption: str, url: str) -> str:
    """16 hex digits that stay the same when rows are added or moved."""
    return hashlib.blake2b(f"{url}\0{caption}".encode(), digest_size=8).hexdigest()


def read_captions(source: Source) -> tuple[pa.Table, dict[str, int]]:
    """The table as key, caption, url, sorted by key.

    A `key` column of the table's own is used as it is; otherwise keys are made from URL and caption,
    and a row that repeats an earlier one in both is dropped and counted.

    Raises InputError for a missing file or column, for unusable rows (unless `source.bad_rows` is
    `drop`) and for a key given twice, naming the rows.
    """
    path = Path(source.path) / source.table
    if not path.is_file():
        raise InputError(f"{path}: there is no such table; 'source.path' and 'source.table' say where it is")
    columns, rows = _rows(path, source.columns)
    missing = [c for c in ("caption", "url") if c not in columns]
    if missing:
        raise InputError(f"{path}: no column '{missing[0]}' among {', '.join(columns)}; rename it, or list the names in 'source.columns' if the table has no header row")
    at = {name: columns.index(name) for name in ("caption", "url", "key") if name in columns}

    seen: dict[str, int] = {}
    good: list[tuple[str, str, str]] = []
    bad: list[str] = []
    repeated = 0
    for number, fields, complaint in rows:
        if fields is not None:
            caption, url = " ".join(fields[at["caption"]].split()), fields[at["url"]].strip()
            if not caption or not url:
                complaint = f"has no {'caption' if not caption else 'URL'}"
        if complaint:
            bad.append(f"row {number} {complaint}")
            continue
        key = fields[at["key"]] if "key" in at else row_key(caption, url)
        if not KEY.fullmatch(key):
            raise InputError(f"{path}: key '{key}' in row {number} is not made of letters, digits, '-' and '_' (64 at most); keys become file names: rename it, or leave the column out")
        if key in seen:
            if "key" in at:
                raise InputError(f"{path}: key '{key}' stands in row {seen[key]} and again in row {number}; keys must be unique, or leave the column out")
            repeated += 1
            continue
        seen[key] = number
        good.append((key, caption, url))
    if bad and source.bad_rows == "error":
        more = f" (and {len(bad) - 3} more)" if len(bad) > 3 else ""
        raise InputError(f"{path}: {'; '.join(bad[:3])}{more}; mend the rows, or set 'source.bad_rows: drop' to go on without them")
    if not good:
        raise InputError(f"{path}: holds no usable row; is it the right table?")
    good.sort()
    table = pa.table([list(c) for c in zip(*good)], schema=CAPTIONS)
    return table, {"captions": len(good), "repeated_rows": repeated, "bad_rows": len(bad)}
