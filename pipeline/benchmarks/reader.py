"""The table of a benchmark's pictures: from class folders, or from rows that a layout made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from pipeline.benchmarks.schemas import SAMPLES
from pipeline.errors import InputError
from pipeline.pictures import (
    Pictures,
    check_classes,
    check_depths,
    check_spellings,
    class_name,
)


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


def _in_parts(pictures: Pictures) -> list[tuple[str, str, str, str]]:
    """(part, domain, class, file) of every picture in `<train|test>/[<domain>/]<class>/`."""
    found, of_part, folders = [], {}, set()
    top = pictures.top_folder(lambda name: name.partition("/")[0].casefold() in ("train", "test"))
    for name in pictures.names:
        parts = name.removeprefix(top).split("/")
        part = parts[0].casefold()
        if len(parts) not in (3, 4) or part not in ("train", "test"):
            raise InputError(
                f"{pictures.path}: '{name}' does not fit "
                "<train|test>/[<domain>/]<class>/<picture>; sort the pictures into that "
                "layout"
            )
        of_part.setdefault(part, []).append(name)
        folders.add(parts[-2])
        found.append((part, parts[1] if len(parts) == 4 else "", class_name(parts[-2]), name))
    for names in of_part.values():
        check_depths(pictures.path, names)
    check_spellings(pictures.path, folders)
    return found


def read_samples(pictures: Pictures, domains: Sequence[str] | None = None) -> pa.Table:
    """`<train|test>/[<domain>/]<class>/<picture>` → the table of `SAMPLES`, in path order.

    Labels number the class names in sorted order; `_` in a folder's name is a space in the class's.
    There may be no train/ at all. With `domains`, only their test pictures are kept.

    Raises InputError for another layout, no test pictures, a domain that is not there, a class that
    one part lacks, or two classes that are one prompt.
    """
    found = _in_parts(pictures)
    check_classes(pictures.path, {row[2] for row in found})
    tested = {row[1] for row in found if row[0] == "test"}
    check_domains(pictures.path, "test/ has", domains, tested)
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
    return numbered(pictures.path, found)


def check_domains(where: Path, what: str, domains: Sequence[str] | None, there: set[str]) -> None:
    """Raises InputError for the first of the `domains` that is not `there`."""
    unknown = [domain for domain in domains or [] if domain not in there]
    if unknown:
        raise InputError(
            f"{where}: {what} no domain '{unknown[0]}', only "
            f"{', '.join(sorted(there - {''})) or 'nothing'}; mend 'domains'"
        )


def numbered(where: Path, rows: Sequence[tuple[str, str, str, str]]) -> pa.Table:
    """The table of `SAMPLES` from (split, domain, class, file): labels number the classes in
    sorted order. Raises InputError for a single class.
    """
    names = sorted({name for _, _, name, _ in rows})
    if len(names) < 2:
        raise InputError(
            f"{where}: has only the class '{names[0]}'; base and new halves need two "
            "classes at least"
        )
    label = {name: i for i, name in enumerate(names)}
    return samples_table(
        [(split, domain, label[name], name, file) for split, domain, name, file in rows]
    )
