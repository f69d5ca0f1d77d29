"""What stages wrote by hand: another such run replaces that, and nothing that a person made."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import InputError

CHEAP = 2**28  # bytes that are hashed to recognise what was written or read


def scratch_of(out: Path) -> Path:
    """The folder in which `out` is worked at: `data/.partial/…` of the checkout that it lies in,
    where no stage's input or output is, else `.partial` beside it.
    """
    folder = out.absolute().parent
    for top in (folder, *folder.parents):
        if (top / ".dvc").is_dir():
            inside = folder.relative_to(top).parts
            return top.joinpath("data", ".partial", *inside[inside[:1] == ("data",) :])
    return folder / ".partial"


def _note_of(out: Path) -> Path:
    return scratch_of(out) / f".{out.name}.written"


def _below(top: Path) -> Iterator[tuple[str, Path]]:
    """(name below `top`, path) of a file, or of all that a folder holds; no link is followed."""
    yield "", top
    if top.is_dir() and not top.is_symlink():
        for path in sorted(top.rglob("*")):
            yield path.relative_to(top).as_posix(), path


def _content(out: Path) -> str:
    """Digest of names, kinds and bytes; of more than `CHEAP` bytes, times stand for the bytes."""
    found = [(name, path, path.lstat()) for name, path in _below(out)]
    is_cheap = sum(status.st_size for _, _, status in found) <= CHEAP
    digest = hashlib.sha256()
    for name, path, status in found:
        digest.update(f"|{name}|{stat.S_IFMT(status.st_mode)}|".encode())
        if stat.S_ISLNK(status.st_mode):
            digest.update(os.fsencode(os.readlink(path)))
        elif stat.S_ISREG(status.st_mode):
            digest.update(f"{status.st_size}|".encode())
            if is_cheap:
                with path.open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
            else:
                digest.update(f"{status.st_mtime_ns}".encode())
    return digest.hexdigest()


def note_written(out: Path) -> None:
    """Notes what a stage wrote to `out`, for `is_written`; not where DVC runs it, which removes
    former outputs itself and keeps them in its cache.
    """
    if not os.path.lexists(out) or os.environ.get("DVC_STAGE"):
        return
    note = _note_of(out)
    note.parent.mkdir(parents=True, exist_ok=True)
    temporary = note.with_name(f"{note.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps({"content": _content(out)}), encoding="utf-8")
    os.replace(temporary, note)


def is_written(out: Path) -> bool:
    """Whether `out` is what a stage wrote there, and nobody changed it since."""
    try:
        noted = json.loads(_note_of(out).read_text(encoding="utf-8"))["content"]
        return noted == _content(out)
    except (OSError, ValueError, TypeError, KeyError):
        return False


def check_replaceable(out: Path) -> None:
    """Raises InputError if something is at `out` that no stage wrote there: it would be lost."""
    is_folder = out.is_dir() and not out.is_symlink()
    if not os.path.lexists(out) or (is_folder and not any(out.iterdir())) or is_written(out):
        return
    raise InputError(
        f"{out}: is there already, and is not what a stage wrote by hand; name another place, or "
        "remove it yourself (`dvc repro` does that with its own outputs)"
    )
