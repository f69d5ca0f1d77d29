"""A person's own pictures: a folder or zip of `class/picture`, or a CSV of `path,label`.

Nothing is decoded here and no zip is unpacked. Whatever is wrong is told in a list, of which
`gram check` prints all and everything else raises the first.
"""

from __future__ import annotations

import csv
import hashlib
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from gram.looking import opened
from pipeline.errors import InputError
from pipeline.image_file import Unreadable
from pipeline.pictures import Pictures, class_name, same_words
from pipeline.zips import entries_of

MOST_CLASSES = 1000
MOST_BYTES = 256 << 20  # of one picture in a zip, unpacked


@dataclass(frozen=True)
class Collection:
    """Labelled pictures that are read one at a time.

    Attributes:
        source: what it was read from.
        files: n paths, as a person knows them.
        labels: n class names.
        read: a path's bytes.
        notes: what was left out, and why.
        digests: n SHA-256 of the files.
    """

    source: str
    files: list[str]
    labels: list[str]
    read: Callable[[str], bytes]
    notes: list[str] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over labels and contents, whatever the files are called."""
        pairs = sorted(zip(self.labels, self.digests, strict=True))
        return hashlib.sha256(repr(pairs).encode()).hexdigest()

    def picture(self, row: int) -> Image.Image:
        """The picture of a row, opened; InputError naming it if that fails."""
        return opened(self.files[row], lambda: self.read(self.files[row]))

    @property
    def names(self) -> list[str]:
        """The class names, sorted."""
        return sorted(set(self.labels))

    @property
    def targets(self) -> np.ndarray:
        """(n,) int64: the labels' places among `names`."""
        return np.searchsorted(self.names, self.labels).astype(np.int64)


def _from_folder(path: Path) -> tuple[Collection, list[str]]:
    pictures = Pictures(path)
    problems = [*pictures.problems] or [
        f"{path}: '{name}' would unpack to {pictures.size(name) >> 20} MiB, and {MOST_BYTES >> 20} "
        "are the most for one picture; remove it"
        for name in (() if path.is_dir() else pictures.names)
        if pictures.size(name) > MOST_BYTES
    ]
    if problems:
        return Collection(str(path), [], [], pictures.read), problems
    files, labels = [], []
    top = pictures.top_folder(lambda name: name.count("/") == 1)
    for name in pictures.names:
        parts = name.removeprefix(top).split("/")
        if len(parts) != 2:
            problems.append(
                f"{path}: '{name}' does not fit <class>/<picture>; give every class one folder, "
                "with its pictures directly in it"
            )
            continue
        files.append(name)
        labels.append(class_name(parts[0]))
    folders = {f.removeprefix(top).split("/")[0] for f in files}
    problems += [
        f"{path}: the folder '{name}' holds no pictures; add some or remove it"
        for name in pictures.empty_folders
    ]
    problems += twins(path, folders)
    notes = [*pictures.notes] + [
        f"{count} files '{ending}' are no pictures that are read"
        for ending, count in pictures.passed_over.items()
    ]
    return Collection(str(path), files, labels, pictures.read, notes), problems


def twins(source: Path | str, names: Iterable[str]) -> list[str]:
    """What is wrong with names of one prompt: they differ in case, or _ is a space."""
    seen: dict[str, str] = {}
    found = []
    for name in sorted(names):
        first = seen.setdefault(same_words(name), name)
        if first != name:
            found.append(
                f"{source}: the classes '{first}' and '{name}' differ in case or spaces only; "
                "merge them, or give one another name"
            )
    return found


def _from_csv(path: Path) -> tuple[Collection, list[str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            if not {"path", "label"} <= set(rows.fieldnames or ()):
                raise InputError(
                    f"{path}: has the columns {', '.join(rows.fieldnames or ()) or 'of no row'}; "
                    "its first line must name 'path' and 'label'"
                )
            lines = [(rows.line_num, row["path"], row["label"]) for row in rows]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a CSV in UTF-8 ({error})") from None
    files, labels, problems = [], [], []
    for number, name, label in lines:
        if not name or not (label or "").strip():
            problems.append(f"{path}, line {number}: has no path or no label; fill it in")
        elif not (path.parent / name).is_file():
            problems.append(f"{path}, line {number}: there is no picture '{path.parent / name}'")
        else:
            files.append(name)
            labels.append(label.strip())
    return Collection(str(path), files, labels, lambda f: (path.parent / f).read_bytes()), problems


def _count_problems(found: Collection) -> Iterator[str]:
    names = found.names
    if not found.files:
        yield (
            f"{found.source}: holds no pictures; put them in one folder for each class "
            "(<class>/<picture>)"
        )
    elif len(names) == 1:
        yield f"{found.source}: has only the class '{names[0]}'; add a folder of another one"
    elif len(names) > MOST_CLASSES:
        yield (
            f"{found.source}: has {len(names)} classes, and {MOST_CLASSES} are the most; split "
            "them into several classifiers"
        )


def _without_copies(found: Collection) -> tuple[Collection, list[str]]:
    """Each picture once, by its bytes; one that stands in two classes is a problem, and so is a
    file that cannot be read.
    """
    digests, problems = [], []
    for file in found.files:
        try:
            digests.append(hashlib.sha256(found.read(file)).hexdigest())
        except (
            *(OSError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError),
            Unreadable,
        ) as error:
            reason = getattr(error, "strerror", None) or error
            problems.append(
                f"{found.source}: '{file}' cannot be read ({reason}); replace or remove it"
            )
    if problems:
        return found, problems
    first: dict[str, int] = {}
    kept = []
    for i, label in enumerate(found.labels):
        earlier = first.setdefault(digests[i], i)
        if earlier == i:
            kept.append(i)
        elif found.labels[earlier] != label:
            problems.append(
                f"{found.source}: '{found.files[earlier]}' and '{found.files[i]}' are the same "
                f"picture in the classes '{found.labels[earlier]}' and '{label}'; remove one"
            )
    copies = len(digests) - len(kept) - len(problems)
    notes = [f"{copies} copies of pictures of the same class were left out"] if copies else []
    files, labels, digests = (
        [column[i] for i in kept] for column in (found.files, found.labels, digests)
    )
    notes = [*found.notes, *notes]
    return Collection(found.source, files, labels, found.read, notes, digests), problems


def copies_and_counts(found: Collection) -> tuple[Collection, list[str]]:
    """Each picture once, and what is wrong with the classes or with pictures in two of them."""
    problems = [*_count_problems(found), *twins(found.source, found.names)]
    if len(found.names) <= MOST_CLASSES:
        found, more = _without_copies(found)
        problems += more
    return found, problems


def examine(path: Path | str) -> tuple[Collection, list[str]]:
    """What can be used of a folder, zip or CSV, and all that is wrong with it."""
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: there is no such file or folder")
    is_csv = path.is_file() and path.suffix.lower() == ".csv"
    if not path.is_dir() and not is_csv and not zipfile.is_zipfile(path):
        raise InputError(f"{path}: neither a folder, a complete zip nor a .csv of path,label")
    found, problems = _from_csv(path) if is_csv else _from_folder(path)
    if found.files or not problems:
        found, more = copies_and_counts(found)
        problems = list(dict.fromkeys([*problems, *more]))
    return found, problems


def first_of(problems: Sequence[str]) -> InputError:
    more = f" (and {len(problems) - 1} more: `gram check` lists them)" if problems[1:] else ""
    return InputError(problems[0] + more)


def read_collection(path: Path | str) -> Collection:
    """The pictures of a folder, zip or CSV.

    Raises InputError with the first problem: no pictures, one class, another layout, a picture in
    two classes, names that differ in case only, a zip entry that is unsafe.
    """
    found, problems = examine(path)
    if problems:
        raise first_of(problems)
    return found


def most_folds(labels: Sequence[str], wanted: int, source: str) -> int:
    """Folds that every class has a picture for: `wanted`, or fewer.

    Raises InputError naming a class with one picture.
    """
    if wanted == 0:
        return 0
    name, least = Counter(labels).most_common()[-1]
    if least < 2:
        raise InputError(
            f"{source}: the class '{name}' has one picture, and a picture that is held out must "
            "leave another one to learn from; add pictures, or measure nothing (--folds 0)"
        )
    return min(wanted, least)


def reader_of(source: Path | str) -> Callable[[str], bytes]:
    """Reads pictures by the names that `read_collection` gave them, without looking at others.

    The reader raises OSError or KeyError for a picture that is not there any more.
    """
    path = Path(source)
    if path.is_dir():
        return lambda name: (path / name).read_bytes()
    if path.suffix.lower() == ".csv":
        return lambda name: (path.parent / name).read_bytes()

    def from_zip(name: str) -> bytes:
        with zipfile.ZipFile(path) as packed:
            return packed.read(entries_of(packed)[0][name])

    return from_zip
