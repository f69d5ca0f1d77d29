"""Reads a folder (or zip) of class folders into one table."""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Sequence
from functools import cached_property
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
        if not self.path.is_dir():
            if not zipfile.is_zipfile(self.path):
                raise InputError(
                    f"{path}: neither a folder nor a complete zip file; the benchmark's 'path' "
                    "must name one"
                )
            self._zip = zipfile.ZipFile(self.path)

    @cached_property
    def names(self) -> list[str]:
        """Sorted; a folder is walked when they are first asked for."""
        if self._zip:
            found = (n for n in self._zip.namelist() if not n.endswith("/"))
        else:
            found = (
                Path(top, file).relative_to(self.path).as_posix()
                for top, _, files in os.walk(self.path)
                for file in files
                if PICTURE.search(file)
            )
        return sorted(n for n in found if PICTURE.search(n))

    def read(self, name: str) -> bytes:
        return self._zip.read(name) if self._zip else (self.path / name).read_bytes()


def half_of(label: int, classes: int) -> str:
    """base: the first ⌈n/2⌉ labels; new: the rest."""
    return "base" if label < -(-classes // 2) else "new"


Row = tuple[str, str, int, str, str]  # split, domain, label, name, file


def samples_table(rows: Sequence[Row]) -> pa.Table:
    """The table of `SAMPLES`: rows as they stand, and the halves of their labels."""
    split, domain, label, name, file = zip(*rows, strict=True)
    classes = max(label) + 1
    half = [half_of(i, classes) for i in range(classes)]
    columns = [range(len(rows)), split, domain, label, name, [half[i] for i in label], file]
    return pa.table(
        [pa.array(c, type=f.type) for c, f in zip(columns, SAMPLES, strict=True)], schema=SAMPLES
    )


def read_samples(pictures: Pictures, domains: Sequence[str] | None = None) -> pa.Table:
    """`<train|test>/[<domain>/]<class>/<picture>` → the table of `SAMPLES`, in path order.

    Labels number the class names in sorted order; `_` in a folder's name is a space in the class's.
    There may be no train/ at all. With `domains`, only their test pictures are kept.

    Raises InputError for another layout, no test pictures, a domain that is not there, or a class
    that one part lacks.
    """
    found = []
    for name in pictures.names:
        parts = name.split("/")
        if len(parts) not in (3, 4) or parts[0] not in ("train", "test"):
            raise InputError(
                f"{pictures.path}: '{name}' does not fit "
                "<train|test>/[<domain>/]<class>/<picture>; sort the pictures into that "
                "layout"
            )
        found.append(
            (parts[0], parts[1] if len(parts) == 4 else "", parts[-2].replace("_", " "), name)
        )
    tested = {row[1] for row in found if row[0] == "test"}
    unknown = [domain for domain in domains or [] if domain not in tested]
    if unknown:
        raise InputError(
            f"{pictures.path}: test/ has no domain '{unknown[0]}', only "
            f"{', '.join(sorted(tested)) or 'nothing'}; mend 'domains'"
        )
    found = [row for row in found if row[0] == "train" or domains is None or row[1] in domains]
    train, test = ({row[2] for row in found if row[0] == split} for split in ("train", "test"))
    if not test:
        raise InputError(f"{pictures.path}: has no pictures under test/; add some")
    place = f"test/ in {', '.join(domains)}" if domains else "test/"
    for there, here, lacking in (
        ("train/", place, train - test),
        (place, "train/", test - train if train else ()),
    ):
        if lacking:
            raise InputError(
                f"{pictures.path}: class '{min(lacking)}' has pictures under {there} but none "
                f"under {here}; add some or remove the class"
            )
    if len(test) < 2:
        raise InputError(
            f"{pictures.path}: has only the class '{min(test)}'; base and new halves need two "
            "classes at least"
        )
    label = {name: i for i, name in enumerate(sorted(test))}
    return samples_table(
        [(split, domain, label[name], name, file) for split, domain, name, file in found]
    )
