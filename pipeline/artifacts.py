"""How every artifact is written and read: atomically, with its schema checked, and resumable.

The schemas stand in the rooms (`pipeline/<room>/schemas.py`) beside the parameters.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from pipeline.code import running
from pipeline.errors import InputError
from pipeline.owner import owned
from pipeline.params import SAME_BYTES
from pipeline.written import CHEAP, check_replaceable, note_written, scratch_of

# a flipped bit is an error when it is read, not another number
PARQUET = {"compression": "zstd", "write_page_checksum": True}

Arrays = tuple[np.ndarray, ...]
Make = Callable[[], Arrays]
Step = Callable[[Arrays], Arrays]

ASIDE = ".kept"  # folder of a work folder, for what is no part of the result
PART = b"part"  # in a Parquet file's metadata: which of its folder's parts it is


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


def _plain(value: Any) -> Any:
    """Settings as nested tuples, without the parameters that change no byte of a result."""
    if isinstance(value, BaseModel):
        fields = type(value).model_fields.items()
        value = {name: getattr(value, name) for name, f in fields if SAME_BYTES not in f.metadata}
    elif isinstance(value, SimpleNamespace) or is_dataclass(value):
        value = vars(value)
    if isinstance(value, dict):
        return tuple((key, _plain(inside)) for key, inside in value.items())
    return tuple(map(_plain, value)) if isinstance(value, (list, tuple)) else value


def _files(top: Path) -> list[tuple[str, Path]]:
    """(name below `top`, path) of every file, behind links too, sorted by name."""
    if not top.is_dir():
        return [("", top)] if top.is_file() else []
    found, seen = [], set()
    for folder, folders, names in os.walk(top, followlinks=True):
        seen.add(os.path.realpath(folder))
        folders[:] = [n for n in folders if os.path.realpath(os.path.join(folder, n)) not in seen]
        paths = (Path(folder, name) for name in names)
        found += [(path.relative_to(top).as_posix(), path) for path in paths if path.is_file()]
    return sorted(found)


def fingerprint(settings: Any, *inputs: Path | str) -> str:
    """16 hex digits of all that a partial result is made with: the code that runs, the settings,
    and the inputs' content; beyond `CHEAP` bytes an input's names, sizes and times stand for it.

    Parameters that change no byte (`pipeline.params.SAME_BYTES`) do not count.
    """
    digest = hashlib.sha256(f"{running()}|{_plain(settings)!r}".encode())
    for number, top in enumerate(map(Path, inputs)):
        files = [(name, path, path.stat()) for name, path in _files(top)]
        cheap = sum(status.st_size for _, _, status in files) <= CHEAP
        for name, path, status in files:
            digest.update(f"|{number}|{name}|{status.st_size}|".encode())
            if cheap:
                with path.open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
            else:
                digest.update(f"{status.st_mtime_ns}".encode())
    return digest.hexdigest()[:16]


_works: list[Path] = []  # of this process: a process is one stage


def keeps_parts() -> bool:
    """Whether a stage that ends here leaves finished parts, which the next run goes on from."""
    return any(
        path.is_file() and not path.name.startswith(".")
        for work in _works
        for path in work.rglob("*")
    )


def _mark_of(work: Path) -> Path:
    """The file beside a work folder by which it is known from a person's folder."""
    return work.with_name(f".{work.name}.work")


@contextmanager
def _worked_at(out: Path, print_of_inputs: str, alone: bool) -> Iterator[Path]:
    """Yields the work folder of `out`; afterwards, and not if the block fails, it goes, with those
    of other fingerprints.
    """
    store = scratch_of(out)
    work = store / f"{out.name}-{print_of_inputs}"
    with owned(store / f".{out.name}.lock", str(out)) if alone else nullcontext():
        if alone:
            check_replaceable(out)
        work.mkdir(parents=True, exist_ok=True)
        _mark_of(work).touch()
        _works.append(work)
        yield work
        if alone:
            note_written(out)
            anyone = glob.escape(out.name) + "-" + "?" * len(print_of_inputs)
            for mark in store.glob(f".{anyone}.work"):
                stale = mark.with_name(mark.name[1:].removesuffix(".work"))
                if stale.is_dir() and not stale.is_symlink():
                    shutil.rmtree(stale)
                mark.unlink()


@contextmanager
def kept_parts(out: Path | str, print_of_inputs: str) -> Iterator[Path]:
    """Yields a folder for finished parts of what the block writes to `out` (`remembered`).

    It survives an interruption, so that the next call with the same fingerprint finds them, and
    goes when the block succeeds. Raises InputError if another process works at `out`.
    """
    with _worked_at(Path(out), print_of_inputs, alone=True) as work:
        yield work


def _save(arrays: Arrays, path: Path) -> None:
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, *arrays, allow_pickle=False)


def remembered(path: Path, make: Make) -> Arrays:
    """The arrays that `make` gives, as they are: from the .npz file `path`, written if it is not
    there.
    """
    if not path.exists():
        _save(make(), path)  # and read: one copy in memory
    with np.load(path, allow_pickle=False) as kept:
        return tuple(kept[f"arr_{number}"] for number in range(len(kept.files)))


@dataclass(frozen=True)
class Keep:
    """Keeps the arrays that take long as .npz files of `folder`; None: keeps nothing."""

    folder: Path | None

    def __call__(self, name: str, make: Make) -> Arrays:
        """What `make` gives, or gave an earlier run."""
        return make() if self.folder is None else remembered(self.folder / f"{name}.npz", make)

    def _has(self, name: str) -> bool:
        return self.folder is not None and (self.folder / f"{name}.npz").exists()

    def steps(
        self,
        name: str,
        begin: Make,
        steps: Sequence[Step],
        told: Callable[[], object] = lambda: None,
    ) -> Arrays:
        """What the steps make, one after the other, of what `begin` gives; each may change it in
        place. What the last finished one gave is kept, and nothing of those before it. `told` is
        called for every step, of an earlier run too.
        """
        done = len(steps)
        while done and not self._has(f"{name}-{done}"):
            done -= 1
        state = self(f"{name}-{done}", begin)
        for number, step in enumerate(steps, 1):
            if number > done:
                state = step(state)
                if self.folder is not None:
                    _save(state, self.folder / f"{name}-{number}.npz")
                    (self.folder / f"{name}-{number - 1}.npz").unlink()
            told()
        return state


made_anew = Keep(None)


def aside(work: Path) -> Keep:
    """Keeps arrays in a work folder of `resumable_folder`, but not in what becomes of it."""
    (work / ASIDE).mkdir(exist_ok=True)
    return Keep(work / ASIDE)


@contextmanager
def resumable_folder(
    out: Path | str, print_of_inputs: str, publish: bool = True, parts: Iterable[str] = ()
) -> Iterator[Path]:
    """Yields a work folder that becomes `out` when the block succeeds.

    The work folder survives an interruption, and the next call with the same fingerprint finds what
    was finished in it. DVC deletes `out` before a stage runs; it does not know of the work folder.
    Files inside must themselves be written with `replacing` or `write_table`. Of several processes
    that share the work, one alone has `publish`.

    Args:
        parts: files that must be there in the end.

    Raises:
        InputError if another process works at `out`, or a part is missing.
    """
    out = Path(out)
    with _worked_at(out, print_of_inputs, publish) as work:
        yield work
        if not publish:
            return
        check_parts(work, parts)
        shutil.rmtree(work / ASIDE, ignore_errors=True)
        for left in work.rglob(".*.tmp"):  # of a run that was killed
            left.unlink()
        check_replaceable(out)  # of what came while it was made
        if out.exists():
            shutil.rmtree(out) if out.is_dir() else out.unlink()
        out.parent.mkdir(parents=True, exist_ok=True)
        _move(work, out)


def _move(work: Path, out: Path) -> None:
    try:
        os.replace(work, out)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        with replacing(out) as near:  # `out` is on another disk
            shutil.copytree(work, near)
        shutil.rmtree(work)


def check_parts(folder: Path, parts: Iterable[str]) -> None:
    """Raises InputError naming the first of the files that is not there."""
    missing = [name for name in parts if not (folder / name).is_file()]
    if missing:
        more = f" and {len(missing) - 1} more of its parts" if len(missing) > 1 else ""
        raise InputError(f"{folder / missing[0]}: missing{more}; {remedy(folder)}")


def remedy(folder: Path) -> str:
    """What brings back a folder that is not whole, also when DVC itself knows no more of it."""
    return (
        f"`dvc checkout {folder}` brings back what DVC has of it; if that is no more than this, "
        "`dvc repro --force --single-item` and the stage that writes it make all of it again"
    )


def numbered(schema: pa.Schema, number: int, parts: int) -> pa.Schema:
    """The schema of one of so many parts of a folder: each says in its metadata which it is (from
    0), so that `shard_paths` misses any that is not there.
    """
    return schema.with_metadata((schema.metadata or {}) | {PART: f"{number}/{parts}".encode()})


def _options(schema: pa.Schema) -> dict[str, Any]:
    """How a table is written. Of vectors no dictionary: hardly a number comes twice, and reading
    them would take nearly three times as long.
    """
    others = [field.name for field in schema if not pa.types.is_fixed_size_list(field.type)]
    return PARQUET | ({"use_dictionary": others} if len(others) < len(schema) else {})


def write_table(table: pa.Table, path: Path | str, schema: pa.Schema) -> None:
    """Writes one Parquet file atomically, cast to `schema` (names, order and types)."""
    table = table.select(schema.names).cast(schema)
    with replacing(path) as temporary:
        pq.write_table(table, temporary, **_options(schema))


def write_parts(parts: Iterable[pa.Table], path: Path | str, schema: pa.Schema) -> None:
    """The same from tables that need not be in memory together; each becomes a row group."""
    with (
        replacing(path) as temporary,
        pq.ParquetWriter(temporary, schema, **_options(schema)) as writer,
    ):
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
    """The numbered shards of a folder in order.

    Raises InputError if there is none, or one is missing: of as many as they say that they are
    (`numbered`), or, if they do not, between the first and the last.
    """
    folder = Path(folder)
    found = {int(p.stem): p for p in folder.glob(f"*{suffix}") if p.stem.isdigit()}
    if not found:
        raise InputError(
            f"{folder}: holds no {suffix} shards; `dvc repro` (or the stage that writes them) "
            "makes them"
        )
    paths = [found[number] for number in sorted(found)]
    told = [part for path in paths if (part := _part_of(path))] if suffix == ".parquet" else []
    if len(told) < len(paths):
        between = range(min(found), max(found))
        check_parts(folder, [f"{n:05d}{suffix}" for n in between if n not in found])
        return paths
    if len(set(told)) < len(told) or len({parts for _, parts in told}) > 1:
        raise InputError(f"{folder}: its parts are of different runs; {remedy(folder)}")
    here, parts = {number for number, _ in told}, told[0][1]
    missing = [number for number in range(parts) if number not in here]
    if missing and all(
        path.stem == f"{number:05d}" for path, (number, _) in zip(paths, told, strict=True)
    ):
        check_parts(folder, [f"{number:05d}{suffix}" for number in missing])
    if missing:
        raise InputError(
            f"{folder}: part {missing[0] + 1} of {parts} is missing ({len(missing)} are); "
            f"{remedy(folder)}"
        )
    return paths


def _part_of(path: Path) -> tuple[int, int] | None:
    """Which of how many parts a file is, if it says so."""
    told = (open_table(path, pa.schema([])).schema_arrow.metadata or {}).get(PART)
    if not told:
        return None
    number, parts = told.split(b"/")
    return int(number), int(parts)


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
    return np.logical_and(np.isfinite(kept).all(axis=1), kept.any(axis=1))


def check_usable(values: np.ndarray, keys: Sequence[str], path: Path | str) -> None:
    """Raises InputError naming `path` and the key of the first row that is no direction."""
    if len(wrong := np.flatnonzero(~usable(values))):
        raise InputError(
            f"{path}: the vector of '{keys[int(wrong[0])]}' is zero or not finite ({len(wrong)} of "
            f"{len(values)} are); the stage that writes them leaves such ones out, so it is "
            "damaged or made by another version: delete it and run `dvc repro`"
        )


def to_vectors(values: np.ndarray) -> pa.Array:
    """(n, d) float array → Arrow column of float16 vectors."""
    flat = pa.array(np.ascontiguousarray(values, dtype=np.float16).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def from_vectors(column: pa.ChunkedArray) -> np.ndarray:
    """Arrow column of float16 vectors → (n, d) float32 array."""
    chunks = [
        np.asarray(c.flatten()).reshape(-1, c.type.list_size) for c in column.chunks if len(c)
    ]
    return (
        np.concatenate(chunks).astype(np.float32)
        if chunks
        else np.zeros((0, column.type.list_size), np.float32)
    )


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
