"""Reads a table of captions and URLs, row by row, and says which rows cannot be used."""

from __future__ import annotations

import codecs
import csv
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import AnyStr

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import InputError, shown
from pipeline.pairs.schemas import CAPTIONS
from pipeline.pairs.tars import tar_files
from pipeline.pictures import PICTURE, left_out
from pipeline.sources.columns import is_header, places
from pipeline.sources.mending import mended
from pipeline.sources.params import Source
from pipeline.stage import warn

KEY = re.compile(r"[A-Za-z0-9_-]{1,64}")
URL = re.compile(r"(?i)https?://\S+$")


SPANNED = 10  # lines of one CSV row from which a stray quote is likelier than a long caption


def _text(content: bytes, counts: Counter) -> str | None:
    """UTF-8, or else Windows-1252 and counted; None if it is neither, or holds a NUL, which no
    text does.
    """
    try:
        text = content.decode()
    except UnicodeDecodeError:
        try:
            text = content.decode("cp1252")
        except UnicodeDecodeError:
            return None
        counts["not_utf8"] += 1
    return None if "\0" in text else text


def _lines(path: Path, counts: Counter) -> Iterator[str | None]:
    """The lines of a text file with their ends; None for one that is no text.

    They end with LF or CR LF, or with CR in a file that has no LF.
    """
    with open(path, "rb") as file:
        if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            with open(path, encoding="utf-16", newline="\n") as wide:
                yield from _by_cr(next(wide, ""), "\r", "\n")
                yield from wide
            return
        file.seek(0)
        first = file.readline().removeprefix(codecs.BOM_UTF8)
        for line in chain(_by_cr(first, b"\r", b"\n"), file):
            yield _text(line, counts)


def _by_cr(first: AnyStr, cr: AnyStr, lf: AnyStr) -> list[AnyStr]:
    """The first line of a file; all of them, if it is the whole file and they end with CR."""
    if first.endswith(lf) or cr not in first:
        return [first] if first else []
    parts = first.split(cr)
    return [part + cr for part in parts[:-1]] + [part for part in parts[-1:] if part]


def _split(path: Path, counts: Counter) -> Iterator[tuple[int, list[str] | None]]:
    """(number of its last line, fields) of every row; [] for an empty one, None for one that is
    no text.
    """
    try:
        if path.suffix.lower() == ".csv":
            reader = csv.reader(
                ("\0" if line is None else line for line in _lines(path, counts)), strict=True
            )
            before = 0
            for row in reader:
                if reader.line_num - before > SPANNED:
                    counts["long_rows"] += 1
                    warn(
                        f"{path}: lines {before + 1} to {reader.line_num} are one row, held "
                        "together by quotes; if one is stray, double it or save the table as .tsv"
                    )
                before = reader.line_num
                yield reader.line_num, None if any("\0" in field for field in row) else row
        else:
            # A TSV has no quoting: a `"` is a character like any other, as in Conceptual Captions.
            for number, line in enumerate(_lines(path, counts), 1):
                yield (
                    number,
                    None
                    if line is None
                    else line.rstrip("\r\n").split("\t")
                    if line.strip()
                    else [],
                )
    except csv.Error as error:
        raise InputError(
            f"{path}: not valid CSV ({shown(error)}): a stray quote, or a line break in a field "
            "without quotes? Double it, or save the table as .tsv, where quotes mean nothing"
        ) from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: starts like UTF-16 text, but is none (byte {error.start}); obtain it again, "
            "or convert it to UTF-8"
        ) from None


Rows = Iterator[tuple[int, list[str] | None, str]]
Table = tuple[dict[str, int], Rows]  # where caption, url and key stand in the rows' fields


def _text_rows(path: Path, columns: list[str] | None, counts: Counter) -> Table:
    numbered, named = _split(path, counts), columns is not None
    if columns is None:
        _, columns = next(numbered, (0, None))
        if not columns:
            raise InputError(f"{path}: is empty, or its first row is; obtain it again")
    width = len(columns)

    def checked() -> Rows:
        for number, fields in numbered:
            if fields is None:
                yield number, None, "is neither UTF-8 nor Windows-1252 text"
            elif not fields:
                yield number, None, "is empty"
            elif len(fields) != width:
                yield (
                    number,
                    None,
                    f"has {len(fields)} fields instead of {width} (a tab or a line break "
                    "inside a caption?)",
                )
            elif is_header(fields):
                if named and number == 1:
                    raise InputError(
                        f"{path}: row 1 holds the names of columns "
                        f"({shown(', '.join(fields))}), and 'source.columns' names them again; set "
                        "it to null"
                    )
                yield number, None, "holds names of columns"
            else:
                yield number, fields, ""

    remedy = "rename it, or list the names in 'source.columns' if the table has no header row"
    return places(path, columns, remedy), checked()


def _is_text(kind: pa.DataType) -> bool:
    return (
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_null(kind)
    )


def _is_list(kind: pa.DataType) -> bool:
    return (
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def _readable(path: Path, name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column of bytes, numbers or lists of bytes: Arrow does not look whether text is UTF-8.

    Raises InputError naming the column's type if its values are no text.
    """
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.cast(kind.value_type)
    if _is_text(column.type):
        return column.cast(pa.large_binary())
    if name == "caption" and _is_list(kind) and _is_text(kind.value_type):
        return column.cast(pa.large_list(pa.large_binary()))
    if name == "key" and pa.types.is_integer(kind):
        return column
    wanted = {"caption": "text, or lists of text", "url": "text", "key": "text or whole numbers"}
    raise InputError(
        f"{path}: column '{name}' is of type {shown(kind)}, but must hold {wanted[name]}; "
        "convert it, or leave it out and name another one so"
    )


def _parquet_rows(path: Path, counts: Counter) -> Table:
    try:
        file = pq.ParquetFile(path)
        names = file.schema_arrow.names
        remedy = "rename it: Parquet names its columns itself, 'source.columns' is not heeded"
        at = places(path, names, remedy)
        # others may be anything, pictures too
        table = file.read(columns=[names[place] for place in at.values()])
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(
            f"{path}: not a complete Parquet file ({shown(str(error).splitlines()[0])}); obtain it "
            "again"
        ) from None
    columns = [_readable(path, name, table[names[place]]) for name, place in at.items()]
    used = list(at)

    def checked() -> Rows:
        for number, row in enumerate(zip(*(c.to_pylist() for c in columns), strict=True), 1):
            for values in _one_caption_each(dict(zip(used, row, strict=True))):
                texts = [
                    _text(v, counts) if isinstance(v, bytes) else "" if v is None else str(v)
                    for v in values.values()
                ]
                fields = [text for text in texts if text is not None]
                yield (
                    (number, fields, "")
                    if len(fields) == len(texts)
                    else (number, None, "is neither UTF-8 nor Windows-1252 text")
                )

    return {name: place for place, name in enumerate(used)}, checked()


def _one_caption_each(row: dict) -> Iterator[dict]:
    """A row with a list of captions as one for each, with keys that tell them apart."""
    if not isinstance(row.get("caption"), list):
        yield row
        return
    for number, caption in enumerate(row["caption"] or [None], 1):
        key = row.get("key")
        own = {} if key is None else {"key": _numbered(key, number)}
        yield row | {"caption": caption} | own


def _numbered(key: bytes | int, number: int) -> bytes:
    return (key if isinstance(key, bytes) else str(key).encode()) + f"-{number}".encode()


def _tar_rows(folder: Path, pattern: str, counts: Counter) -> Table:
    """A row for each caption of each picture in the tars: that is the .txt of the same name, or
    `caption` in its .json, which may be a list; its URL is TAR/PICTURE.
    """
    paths = sorted(folder.glob(pattern))

    def checked() -> Rows:
        number = 0
        for path in paths:
            pictures: dict[str, list[str]] = {}
            captions: dict[str, list[str | None]] = {}
            for member, content in tar_files(path):
                stem, _, kind = member.name.rpartition(".")
                if left_out(PurePosixPath(member.name).name):
                    continue
                if PICTURE.search(member.name):
                    pictures.setdefault(stem, []).append(member.name)
                elif kind == "txt":
                    captions[stem] = [_text(content.read(), counts)]
                elif kind == "json" and stem not in captions:
                    captions[stem] = _captions_of(content.read(), counts)
            for stem, names in pictures.items():
                for name in names:
                    url = f"{path.relative_to(folder)}/{name}"
                    for caption in captions.get(stem) or [None]:
                        number += 1
                        wrong = "" if caption else f"({shown(url)}) has no caption"
                        yield number, [caption or "", url], wrong

    return {"caption": 0, "url": 1}, checked()


def _captions_of(content: bytes, counts: Counter) -> list[str | None]:
    try:
        found = json.loads(_text(content, counts) or "null")
    except json.JSONDecodeError:
        return []
    caption = found.get("caption") if isinstance(found, dict) else None
    captions = caption if isinstance(caption, list) else [caption]
    return [c if isinstance(c, str) else None for c in captions]


KINDS = (".tsv", ".csv", ".parquet")


def _files(source: Source) -> list[Path]:
    """The files of a table in the order of their names: one, all of a folder as Spark writes it, or
    those that a pattern finds. What begins with "_" or "." is no part of a table.

    Raises InputError if there is none, or if they are not of one kind.
    """
    path = Path(source.path) / source.table
    if path.is_file():
        found = [path]
    elif path.is_dir():
        found = [
            file
            for file in sorted(path.rglob("*"))
            if file.is_file() and not any(p[0] in "._" for p in file.relative_to(path).parts)
        ]
        if not found:
            raise InputError(f"{path}: the folder holds no part of a table; obtain it again")
    else:
        inside = "*" in source.table and not Path(source.table).is_absolute()
        found = sorted(Path(source.path).glob(source.table)) if inside else []
        if not found:
            raise InputError(
                f"{path}: there is no such table; 'source.path' and 'source.table' say where it "
                "is, 'source.obtain' where it comes from"
            )
    kinds = sorted({file.suffix.lower() for file in found})
    if len(kinds) > 1 or kinds[0] not in KINDS:
        what = "not a" if len(found) == 1 else f"holds {shown(', '.join(kinds))} files, not one of"
        raise InputError(
            f"{path}: {what} .tsv, .csv or .parquet file; convert it or name another one in "
            "'source.table' (a pattern such as \"table/*.parquet\" takes some files of a folder)"
        )
    return found


def _tables(source: Source, counts: Counter) -> Iterator[tuple[str, dict[str, int], Rows]]:
    """(" of FILE" where there are several, where caption, url and key stand, and row number as an
    editor counts, fields or None, complaint for each row) of every file of a table.
    """
    folder = Path(source.path)
    if source.table.endswith(".tar") and any(folder.glob(source.table)):
        yield "", *_tar_rows(folder, source.table, counts)
        return
    files = _files(source)
    for file in files:
        if len(files) > 1 and not file.stat().st_size:
            continue  # Spark writes a file for an empty part, too
        of = f" of {file.name}" if len(files) > 1 else ""
        if file.suffix.lower() == ".parquet":
            yield of, *_parquet_rows(file, counts)
        else:
            yield of, *_text_rows(file, source.columns, counts)


def row_key(caption: str, url: str) -> str:
    """16 hex digits that stay the same when rows are added or moved."""
    return hashlib.blake2b(f"{url}\0{caption}".encode(), digest_size=8).hexdigest()


@dataclass
class _Read:
    """The rows of a table, sorted out: key, caption and URL of the good ones, the number of those
    that repeat one, and what is wrong with the others.
    """

    good: list[tuple[str, str, str]] = field(default_factory=list)
    repeated: int = 0
    bad: list[str] = field(default_factory=list)


SWAPPED = "has a URL as its caption and none as its URL: are 'source.columns' in this order?"


def _sorted_out(source: Source, path: Path, counts: Counter[str]) -> _Read:
    """Raises InputError for a key that names no file, and for one that stands twice."""
    read, seen = _Read(), dict[str, tuple[str, int]]()
    for of, at, rows in _tables(source, counts):
        for number, fields, complaint in rows:
            wrong = complaint
            if fields is not None:
                caption, url = mended(fields[at["caption"]], counts), fields[at["url"]].strip()
                if not (caption and url):
                    wrong = wrong or f"has no {'caption' if not caption else 'URL'}"
                elif source.pictures is None and URL.match(caption) and not URL.match(url):
                    wrong = SWAPPED
            if wrong or fields is None:
                read.bad.append(f"row {number}{of} {wrong}")
                continue
            key = fields[at["key"]] if "key" in at else row_key(caption, url)
            if not KEY.fullmatch(key):
                raise InputError(
                    f"{path}: key '{shown(key)}' in row {number}{of} is not made of letters, "
                    "digits, '-' and '_' (64 at most); keys become file names: rename it, or leave "
                    "the column out"
                )
            if key not in seen:
                seen[key] = of, number
                read.good.append((key, caption, url))
            elif "key" in at:
                first, place = seen[key]
                raise InputError(
                    f"{path}: key '{key}' stands in row {place}{first} and again in row "
                    f"{number}{of}; keys must be unique, or leave the column out"
                )
            else:
                read.repeated += 1
    return read


def read_captions(source: Source) -> tuple[pa.Table, dict[str, int]]:
    """The table as key, caption, url, sorted by key, and what was counted on the way. Captions are
    mended (`mended`).

    A list of captions makes a row for each; a key that the table gives then gets `-1`, `-2` … A
    `key` column of the table's own is else used as it is; without one, keys are made from URL and
    caption, and a row that repeats an earlier one in both is dropped and counted.

    Raises InputError for a missing file or column, for a column that stands twice, for unusable
    rows (unless `source.bad_rows` is `drop`) and for a key given twice, naming the rows.
    """
    path = Path(source.path) / source.table
    counts = Counter(not_utf8=0, mended=0)
    read = _sorted_out(source, path, counts)
    if read.bad and source.bad_rows == "error":
        more = f" (and {len(read.bad) - 3} more)" if len(read.bad) > 3 else ""
        raise InputError(
            f"{path}: {'; '.join(read.bad[:3])}{more}; mend the rows, or set 'source.bad_rows: "
            "drop' to go on without them"
        )
    if not read.good:
        first = f" ({read.bad[0]})" if read.bad else ""
        raise InputError(f"{path}: holds no usable row{first}; is it the right table?")
    table = pa.table([list(c) for c in zip(*sorted(read.good), strict=True)], schema=CAPTIONS)
    told = {"captions": len(table), "repeated_rows": read.repeated, "bad_rows": len(read.bad)}
    return table, told | counts
