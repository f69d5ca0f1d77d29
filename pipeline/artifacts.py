"""How every artifact is written and read: atomically, with its schema checked, and resumable.

The schemas stand in the rooms (`pipeline/<room>/schemas.py`) beside the parameters.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import InputError

# a flipped bit is an error when it is read, not another number
PARQUET = {"compression": "zstd", "write_page_checksum": True}


@contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """Yields a temporary name in the same folder, moved onto `path` only if the block succeeds."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def fingerprint(settings: Any, *inputs: Path | str) -> str:
    """16 hex digits that change with the settings or with any input file's name, size or time."""
    digest = hashlib.sha256(repr(settings).encode())
    for top in map(Path, inputs):
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            if path.is_file():
                status = path.stat()
                digest.update(f"{path}|{status.st_size}|{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


@contextmanager
def resumable_folder(out: Path | str, print_of_inputs: str, publish: bool = True) -> Iterator[Path]:
    """Yields a work folder that becomes `out` when the block succeeds.

    The work folder survives an interruption, and the next call with the same fingerprint finds what
    was finished in it. DVC deletes `out` before a stage runs; it does not know of the work folder.
    Files inside must themselves be written with `replacing` or `write_table`. Of several processes
    that share the work, one alone has `publish`.
    """
    out = Path(out)
    store = out.parent / ".partial"
    work = store / f"{out.name}-{print_of_inputs}"
    work.mkdir(parents=True, exist_ok=True)
    yield work
    if not publish:
        return
    for left in work.rglob(".*.tmp"):  # of a run that was killed
        left.unlink()
    if out.exists():
        shutil.rmtree(out)
    os.replace(work, out)
    for stale in store.glob(f"{out.name}-" + "?" * len(print_of_inputs)):
        shutil.rmtree(stale)


def write_table(table: pa.Table, path: Path | str, schema: pa.Schema) -> None:
    """Writes one Parquet file atomically, cast to `schema` (names, order and types)."""
    table = table.select(schema.names).cast(schema)
    with replacing(path) as temporary:
        pq.write_table(table, temporary, **PARQUET)


def write_parts(parts: Iterable[pa.Table], path: Path | str, schema: pa.Schema) -> None:
    """The same from tables that need not be in memory together; each becomes a row group."""
    with replacing(path) as temporary, pq.ParquetWriter(temporary, schema, **PARQUET) as writer:
        for part in parts:
            writer.write_table(part.select(schema.names).cast(schema))


def open_table(path: Path | str, schema: pa.Schema) -> pq.ParquetFile:
    """Opens a Parquet file and checks its columns.

    Raises InputError naming the file and what is wrong with it (missing, truncated, other columns).
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: missing; `dvc repro` (or the stage that writes it) makes it")
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
    except (pa.ArrowInvalid, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{path}: not a complete Parquet file ({reason}); delete it and run `dvc repro` again"
        ) from None
    found = file.schema_arrow
    for field in schema:
        if field.name not in found.names:
            raise InputError(
                f"{path}: has no column '{field.name}' (it has {', '.join(found.names)}); it was "
                "written by another version: delete it and run `dvc repro`"
            )
        if found.field(field.name).type != field.type:
            raise InputError(
                f"{path}: column '{field.name}' is {found.field(field.name).type}, expected "
                f"{field.type}; it was written by another version: delete it and run `dvc "
                "repro`"
            )
    return file


@contextmanager
def naming_damage(path: Path | str) -> Iterator[None]:
    """Whatever Parquet finds wrong while it reads becomes an InputError that names the file."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{path}: damaged ({str(error).splitlines()[0]}); delete it and run `dvc repro` again"
        ) from None


def read_table(path: Path | str, schema: pa.Schema, columns: list[str] | None = None) -> pa.Table:
    """Reads one Parquet file after `open_table`'s checks."""
    file = open_table(path, schema)
    with naming_damage(path):
        return file.read(columns=columns or schema.names)


def shard_paths(folder: Path | str, suffix: str = ".parquet") -> list[Path]:
    """The numbered shards of a folder in order; none at all is an InputError."""
    paths = sorted(p for p in Path(folder).glob(f"*{suffix}") if p.stem.isdigit())
    if not paths:
        raise InputError(
            f"{folder}: holds no {suffix} shards; `dvc repro` (or the stage that writes them) "
            "makes them"
        )
    return paths


def read_shards(
    folder: Path | str, schema: pa.Schema, columns: list[str] | None = None
) -> pa.Table:
    return pa.concat_tables([read_table(p, schema, columns) for p in shard_paths(folder)])


def vector_type(dim: int) -> pa.DataType:
    """float16 vectors of one length."""
    return pa.list_(pa.float16(), dim)


def vector_dim(path: Path | str, column: str) -> int:
    """Length of the vectors in a column of a Parquet file, after `open_table`'s checks."""
    found = open_table(path, pa.schema([])).schema_arrow
    if column not in found.names or not pa.types.is_fixed_size_list(found.field(column).type):
        raise InputError(
            f"{path}: has no column '{column}' of vectors; it was written by another version: "
            "delete it and run `dvc repro`"
        )
    return found.field(column).type.list_size


def usable(values: np.ndarray) -> np.ndarray:
    """(n,) True where a row of (n, d) is a direction as float16 vectors are kept: every number
    finite, not all of them zero.
    """
    with np.errstate(over="ignore"):
        kept = np.asarray(values).astype(np.float16, copy=False)
    return np.isfinite(kept).all(axis=1) & kept.any(axis=1)


def check_usable(values: np.ndarray, keys: Sequence[str], path: Path | str) -> None:
    """Raises InputError naming `path` and the key of the first row that is no direction."""
    if len(wrong := np.flatnonzero(~usable(values))):
        raise InputError(
            f"{path}: the vector of '{keys[int(wrong[0])]}' is zero or not finite ({len(wrong)} of "
            f"{len(values)} are); the stage that writes them leaves such ones out, so it is "
            "damaged or made by another version: delete it and run `dvc repro`"
        )


def to_vectors(values: np.ndarray, there: np.ndarray | None = None) -> pa.Array:
    """(n, d) float array → Arrow column of float16 vectors, null where (n,) `there` is False."""
    with np.errstate(over="ignore"):
        flat = pa.array(np.ascontiguousarray(values, dtype=np.float16).reshape(-1))
    mask = None if there is None or there.all() else pa.array(~there)
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1], mask=mask)


def from_vectors(column: pa.ChunkedArray) -> np.ndarray:
    """Arrow column of float16 vectors → (n, d) float32 array, rows of NaN for nulls."""
    dim = column.type.list_size
    chunks = [
        np.asarray(c.values.slice(c.offset * dim, len(c) * dim)).reshape(-1, dim)
        for c in column.chunks
        if len(c)
    ]
    if not chunks:
        return np.zeros((0, dim), np.float32)
    found = np.concatenate(chunks).astype(np.float32)
    if column.null_count:
        found[np.asarray(column.is_null())] = np.nan
    return found


def write_json(values: Any, path: Path | str) -> None:
    """Raises ValueError for NaN and infinities, which JSON does not have; who writes leaves out
    what was not measured.
    """
    with replacing(path) as temporary:
        temporary.write_text(
            json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n",
            encoding="utf-8",
        )


def _refuse(constant: str) -> None:
    raise json.JSONDecodeError(f"{constant} is no number of JSON", constant, 0)


def read_json(path: Path | str) -> Any:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"), parse_constant=_refuse)
    except FileNotFoundError:
        raise InputError(f"{path}: missing; `dvc repro` makes it") from None
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}: not valid JSON ({error}); delete it and run `dvc repro` again"
        ) from None
