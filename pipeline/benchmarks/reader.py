"""Reads a folder (or zip) of class folders into one table."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import pyarrow as pa

from pipeline.benchmarks.schemas import SAMPLES
from pipeline.errors import InputError

PICTURE = re.compile(r"\.(jpe?g|png|webp|bmp)$", re.IGNORECASE)


class Pictures:
    """The picture files of a folder or zip: their relative paths, and their bytes."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._zip = None
        if self.path.is_dir():
            found = (p.relative_to(self.path).as_posix() for p in self.path.rglob("*") if p.is_file())
        elif zipfile.is_zipfile(self.path):
            self._zip = zipfile.ZipFile(self.path)
            found = (n for n in self._zip.namelist() if not n.endswith("/"))
        else:
            raise InputError(f"{path}: neither a folder nor a complete zip file; the benchmark's 'path' must name one")
        self.names = sorted(n for n in found if PICTURE.search(n))

    def read(self, name: str) -> bytes:
        return self._zip.read(name) if self._zip else (self.path / name).read_bytes()


def half_of(label: int, classes: int) -> str:
    """base: the first ⌈n/2⌉ labels; new: the rest."""
    return "base" if label < -(-classes // 2) else "new"


def read_samples(pictures: Pictures) -> pa.Table:
    """`<train|test>/[<domain>/]<class>/<picture>` → the table of `SAMPLES`, in path order.

    Labels number the class names in sorted order; `_` in a folder's name is a space in the class's.

    Raises InputError for another layout, a missing part, or a class that one part lacks.
    """
    rows = []
    for name in pictures.names:
        parts = name.split("/")
        if len(parts) not in (3, 4) or parts[0] not in ("train", "test"):
            raise InputError(f"{pictures.path}: '{name}' does not fit <train|test>/[<domain>/]<class>/<picture>; sort the pictures into that layout")
        rows.append((parts[0], parts[1] if len(parts) == 4 else "", parts[-2].replace("_", " "), name))
    by_split = {split: {r[2] for r in rows if r[0] == split} for split in ("train", "test")}
    for split, other in (("train", "test"), ("test", "train")):
        if not by_split[split]:
            raise InputError(f"{pictures.path}: has no pictures under {split}/; both train/ and test/ are needed")
        lacking = sorted(by_split[other] - by_split[split])
        if lacking:
            raise InputError(f"{pictures.path}: class '{lacking[0]}' has pictures under {other}/ but none under {split}/; add some or remove the class")
    names = sorted(by_split["train"])
    if len(names) < 2:
        raise InputError(f"{pictures.path}: has only the class '{names[0]}'; base and new halves need two classes at least")
    label = {name: i for i, name in enumerate(names)}
    columns = [
        range(len(rows)), [r[0] for r in rows], [r[1] for r in rows], [label[r[2]] for r in rows],
        [r[2] for r in rows], [half_of(label[r[2]], len(names)) for r in rows], [r[3] for r in rows],
    ]
    return pa.table([pa.array(c, type=f.type) for c, f in zip(columns, SAMPLES)], schema=SAMPLES)
