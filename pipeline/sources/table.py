"""Reads a table of captions and URLs, row by row, and says which rows cannot be used."""

from __future__ import annotations

import codecs
import csv
import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq
from ftfy import TextFixerConfig, fix_text

from pipeline.errors import InputError
from pipeline.pairs.schemas import CAPTIONS
from pipeline.pairs.tars import tar_files
from pipeline.pictures import PICTURE, left_out
from pipeline.sources.params import Source
from pipeline.stage import warn

KEY = re.compile(r"[A-Za-z0-9_-]{1,64}")


# The rest of what ftfy does (straight quotes, ligatures, narrow letters) changes how a caption is
# set, not what it says.
MENDED = TextFixerConfig(
    unescape_html=True,  # where tags stand in a caption, too
    uncurl_quotes=False,
    fix_latin_ligatures=False,
    fix_character_width=False,
    explain=False,
)
BLANK = frozenset("\u115f\u1160\u2800\u3164\uffa0")  # letters and symbols that show nothing
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


def _mended(caption: str, counts: Counter) -> str:
    """The caption in one line, without double encoding ("cafÃ©") and HTML's signs ("&amp;"), as
    CLIP's tokenizer would take it; empty if nothing of it can be seen.
    """
    caption = " ".join(caption.split())
    if caption.isascii() and caption.isprintable() and "&" not in caption:
        return caption  # next to all are: nothing to look for
    mended = " ".join(fix_text(caption, MENDED).split())
    counts["mended"] += mended != caption
    return mended if any(_is_seen(letter) for letter in mended) else ""


def _is_seen(letter: str) -> bool:
    """Letters, digits, punctuation and symbols; no spaces, joiners and marks by themselves."""
    return unicodedata.category(letter)[0] in "LNPS" and letter not in BLANK


def _lines(path: Path, counts: Counter) -> Iterator[str | None]:
    """The lines of a text file with their ends; None for one that is no text."""
    with open(path, "rb") as file:
        if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            with open(path, encoding="utf-16", newline="\n") as wide:
                yield from wide
            return
        file.seek(0)
        for number, line in enumerate(file):
            yield _text(line.removeprefix(codecs.BOM_UTF8) if number == 0 else line, counts)


def _split(path: Path, counts: Counter) -> Iterator[tuple[int, list[str] | None]]:
    """(number of its last line, fields) of every row; [] for an empty one, None for one that is
    no text.
    """
    try:
        if path.suffix == ".csv":
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
            f"{path}: not valid CSV ({error}): a stray quote? Double it, or save the table as "
            ".tsv, where quotes mean nothing"
        ) from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: starts like UTF-16 text, but is none (byte {error.start}); obtain it again, "
            "or convert it to UTF-8"
        ) from None


Rows = Iterator[tuple[int, list[str] | None, str]]


def _text_rows(path: Path, columns: list[str] | None, counts: Counter) -> tuple[list[str], Rows]:
    numbered = _split(path, counts)
    if columns is None:
        _, columns = next(numbered, (0, None))
        if not columns:
            raise InputError(f"{path}: is empty, or its first row is; obtain it again")

    def checked() -> Rows:
        for number, fields in numbered:
            if fields is None:
                yield number, None, "is neither UTF-8 nor Windows-1252 text"
            elif not fields:
                yield number, None, "is empty"
            elif len(fields) != len(columns):
                yield (
                    number,
                    None,
                    f"has {len(fields)} fields instead of {len(columns)} (a tab or a line break "
                    "inside a caption?)",
                )
            else:
                yield number, fields, ""

    return columns, checked()


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
        f"{path}: column '{name}' is of type {kind}, but must hold {wanted[name]}; convert it, or "
        "leave it out and name another one so"
    )


def _parquet_rows(path: Path, counts: Counter) -> tuple[list[str], Rows]:
    try:
        file = pq.ParquetFile(path)
        # others may be anything, pictures too
        used = [name for name in file.schema_arrow.names if name in ("caption", "url", "key")]
        table = file.read(columns=used)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(
            f"{path}: not a complete Parquet file ({str(error).splitlines()[0]}); obtain it again"
        ) from None
    columns = [_readable(path, name, table[name]) for name in used]

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

    return used if {"caption", "url"} <= set(used) else file.schema_arrow.names, checked()


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


def _tar_rows(folder: Path, pattern: str, counts: Counter) -> tuple[list[str], Rows]:
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
                        wrong = "" if caption else f"({url}) has no caption"
                        yield number, [caption or "", url], wrong

    return ["caption", "url"], checked()


def _captions_of(content: bytes, counts: Counter) -> list[str | None]:
    try:
        found = json.loads(_text(content, counts) or "null")
    except json.JSONDecodeError:
        return []
    caption = found.get("caption") if isinstance(found, dict) else None
    captions = caption if isinstance(caption, list) else [caption]
    return [c if isinstance(c, str) else None for c in captions]


def _rows(source: Source, counts: Counter) -> tuple[list[str], Rows]:
    """Column names, and (row number as an editor counts, fields or None, complaint) for each
    row.
    """
    path = Path(source.path) / source.table
    if path.suffix == ".tar" and any(Path(source.path).glob(source.table)):
        return _tar_rows(Path(source.path), source.table, counts)
    if not path.is_file():
        raise InputError(
            f"{path}: there is no such table; 'source.path' and 'source.table' say where it is, "
            "'source.obtain' where it comes from"
        )
    if path.suffix == ".parquet":
        return _parquet_rows(path, counts)
    if path.suffix not in (".tsv", ".csv"):
        raise InputError(
            f"{path}: not a .tsv, .csv or .parquet file; convert it or name another one in "
            "'source.table'"
        )
    return _text_rows(path, source.columns, counts)


def row_key(caption: str, url: str) -> str:
    """16 hex digits that stay the same when rows are added or moved."""
    return hashlib.blake2b(f"{url}\0{caption}".encode(), digest_size=8).hexdigest()


@dataclass
class _Read:
    """The rows of a table, sorted out: key, caption and URL of the good ones, the number of those
    that repeat one, and what is wrong with the others.
    """

    good: list[tuple[str, str, str]]
    repeated: int
    bad: list[str]


def _sorted_out(rows: Rows, at: dict[str, int], path: Path, counts: Counter[str]) -> _Read:
    """Args: at: where caption, url and, if there is one, key stand in a row's fields."""
    read, seen = _Read([], 0, []), dict[str, int]()
    for number, fields, complaint in rows:
        wrong = complaint
        if fields is not None:
            caption, url = _mended(fields[at["caption"]], counts), fields[at["url"]].strip()
            if not (caption and url):
                wrong = wrong or f"has no {'caption' if not caption else 'URL'}"
        if wrong or fields is None:
            read.bad.append(f"row {number} {wrong}")
            continue
        key = fields[at["key"]] if "key" in at else row_key(caption, url)
        if not KEY.fullmatch(key):
            raise InputError(
                f"{path}: key '{key}' in row {number} is not made of letters, digits, '-' and '_' "
                "(64 at most); keys become file names: rename it, or leave the column out"
            )
        if key not in seen:
            seen[key] = number
            read.good.append((key, caption, url))
        elif "key" in at:
            raise InputError(
                f"{path}: key '{key}' stands in row {seen[key]} and again in row {number}; "
                "keys must be unique, or leave the column out"
            )
        else:
            read.repeated += 1
    return read


def read_captions(source: Source) -> tuple[pa.Table, dict[str, int]]:
    """The table as key, caption, url, sorted by key, and what was counted on the way. Captions are
    mended (`_mended`).

    A list of captions makes a row for each; a key that the table gives then gets `-1`, `-2` … A
    `key` column of the table's own is else used as it is; without one, keys are made from URL and
    caption, and a row that repeats an earlier one in both is dropped and counted.

    Raises InputError for a missing file or column, for unusable rows (unless `source.bad_rows` is
    `drop`) and for a key given twice, naming the rows.
    """
    path = Path(source.path) / source.table
    counts = Counter(not_utf8=0, mended=0)
    columns, rows = _rows(source, counts)
    missing = [c for c in ("caption", "url") if c not in columns]
    if missing:
        raise InputError(
            f"{path}: no column '{missing[0]}' among {', '.join(columns)}; rename it, or list the "
            "names in 'source.columns' if the table has no header row"
        )
    named = ("caption", "url", "key")
    at: dict[str, int] = {name: columns.index(name) for name in named if name in columns}
    read = _sorted_out(rows, at, path, counts)
    if read.bad and source.bad_rows == "error":
        more = f" (and {len(read.bad) - 3} more)" if len(read.bad) > 3 else ""
        raise InputError(
            f"{path}: {'; '.join(read.bad[:3])}{more}; mend the rows, or set 'source.bad_rows: "
            "drop' to go on without them"
        )
    if not read.good:
        raise InputError(f"{path}: holds no usable row; is it the right table?")
    table = pa.table([list(c) for c in zip(*sorted(read.good), strict=True)], schema=CAPTIONS)
    told = {"captions": len(table), "repeated_rows": read.repeated, "bad_rows": len(read.bad)}
    return table, told | counts
