"""A person's own pictures: a folder or zip of `class/picture`, or a CSV of `path,label`.

Nothing is decoded here and no zip is unpacked. Whatever is wrong is told in a list, of which
`gram check` prints all and everything else raises the first. What is left out is told in notes.
"""

from __future__ import annotations

import csv
import hashlib
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from gram.looking import opened
from pipeline.errors import InputError
from pipeline.image_file import Unreadable
from pipeline.pictures import PICTURE, Pictures, class_name, same_words

MOST_CLASSES = 1000
MOST_ENDINGS = 5  # that a note names
UNSURE_FOLDER = "_unsure"  # where `gram predict --copy-to` puts pictures of no one class
MOST_BYTES = 256 << 20  # of one picture in a zip, unpacked


def label_name(label: Any) -> str:
    """A class's name in prompts: a label of any kind as text."""
    return str(int(label)) if isinstance(label, (float, np.floating)) else str(label)


@dataclass(frozen=True)
class Collection:
    """Labelled pictures that are read one at a time.

    Attributes:
        source: what it was read from.
        files: n paths, as a person knows them.
        labels: n class names, or other labels of one type.
        read: a path's bytes.
        notes: what was left out, and why.
        digests: n SHA-256 of the files.
    """

    source: str
    files: list[str]
    labels: list[Any]
    read: Callable[[str], bytes]
    notes: list[str] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)

    def __getstate__(self) -> dict[str, Any]:
        """An open zip is not kept: it is read again from where it lies."""
        read = reader_of(self.source) if Path(self.source).exists() else self.read
        return {name: getattr(self, name) for name in self.__dataclass_fields__} | {"read": read}

    @property
    def fingerprint(self) -> str:
        """SHA-256 over labels and contents, whatever the files are called."""
        pairs = sorted(zip(map(label_name, self.labels), self.digests, strict=True))
        return hashlib.sha256(repr(pairs).encode()).hexdigest()

    def picture(self, row: int) -> Image.Image:
        """The picture of a row, opened; InputError naming it if that fails."""
        return opened(self.files[row], lambda: self.read(self.files[row]))

    @cached_property
    def _unique(self) -> tuple[np.ndarray, np.ndarray]:
        if not self.labels:
            return np.array([], dtype=str), np.array([], dtype=np.int64)
        return np.unique(np.array(self.labels), return_inverse=True)

    @property
    def classes(self) -> np.ndarray:
        """(K,) the labels that occur, sorted, in their own type."""
        return self._unique[0]

    @property
    def names(self) -> list[str]:
        """The K classes' names."""
        return [label_name(label) for label in self.classes]

    @property
    def targets(self) -> np.ndarray:
        """(n,) int64: the labels' places among `classes`."""
        return self._unique[1].astype(np.int64)


def _unsafe(pictures: Pictures) -> list[str]:
    """What is wrong with a zip's entries, before any is read."""
    return [*pictures.problems] or [
        f"{pictures.path}: '{name}' would unpack to {pictures.size(name) >> 20} MiB, and "
        f"{MOST_BYTES >> 20} are the most for one picture; remove it"
        for name in (() if pictures.path.is_dir() else pictures.names)
        if pictures.size(name) > MOST_BYTES
    ]


def passed_over(
    names: Sequence[str], why: str = "passed over, as no pictures that are read"
) -> list[str]:
    """A note that counts files by their endings and names the first, if there are any."""
    if not names:
        return []
    endings = Counter(PurePosixPath(name).suffix.lower() or "without an ending" for name in names)
    most = sorted(endings.items(), key=lambda item: (-item[1], item[0]))[:MOST_ENDINGS]
    kinds = [f"{count} {ending}" for ending, count in most]
    more = ["others"] if len(endings) > MOST_ENDINGS else []
    files = "file" if len(names) == 1 else "files"
    return [f"{why}: {len(names)} {files} ({', '.join(kinds + more)}; the first: '{names[0]}')"]


def _hidden(path: Path) -> list[str]:
    """A note that names folders which are left out as hidden, if there are any."""
    if path.is_dir():
        names = [entry.name for entry in path.iterdir() if entry.is_dir()]
    else:
        with zipfile.ZipFile(path) as packed:
            names = [name.split("/")[0] for name in packed.namelist() if "/" in name]
    hidden = sorted({name for name in names if name.startswith(".")})
    return [f"the hidden folder '{name}' is left out" for name in hidden]


def _from_folder(path: Path) -> tuple[Collection, list[str]]:
    pictures = Pictures(path)
    if problems := _unsafe(pictures):
        return Collection(str(path), [], [], pictures.read), problems
    files, labels, unsure = [], [], []
    top = pictures.top_folder(lambda name: name.count("/") == 1)
    for name in pictures.names:
        parts = name.removeprefix(top).split("/")
        if parts[0] == UNSURE_FOLDER:
            unsure.append(name)
        elif len(parts) != 2:
            problems.append(
                f"{path}: '{name}' does not fit <class>/<picture>; give every class one folder, "
                "with its pictures directly in it"
            )
        else:
            files.append(name)
            labels.append(class_name(parts[0]))
    problems += [
        f"{path}: the folder '{name}' holds no pictures; add some or remove it"
        for name in pictures.empty_folders
        if name.removeprefix(top) != UNSURE_FOLDER
    ]
    problems += twins(path, {f.removeprefix(top).split("/")[0] for f in files})
    notes = [
        *pictures.notes,
        *passed_over(pictures.others),
        *passed_over(unsure, "left out until you file them by class, as none was sure"),
        *_hidden(path),
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


def _rows(path: Path, columns: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """(line number, row) of a CSV; a row has no text beside its columns.

    Raises InputError for another encoding, a header that lacks one of `columns` or has a name
    twice, a quote that is not closed, and a row with more fields than the header.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, strict=True, skipinitialspace=True)
            header = [name.strip() for name in rows.fieldnames or ()]
            if not set(columns) <= set(header):
                raise InputError(
                    f"{path}: has the columns {', '.join(header) or 'of no row'}; its first line "
                    f"must name {' and '.join(map(repr, columns))}, separated by commas"
                )
            if twice := [name for name, count in Counter(header).items() if count > 1]:
                raise InputError(f"{path}: names the column '{twice[0]}' twice; remove one")
            rows.fieldnames = header
            found = [(rows.line_num, row) for row in rows]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a CSV in UTF-8 ({error})") from None
    for number, row in found:
        if None in row:
            raise InputError(
                f"{path}, line {number}: has more fields than the first line names; put a text "
                'that holds a comma in quotes ("a, b")'
            )
    return found


def _from_csv(path: Path) -> tuple[Collection, list[str]]:
    files, labels, problems = [], [], []
    for number, row in _rows(path, ["path", "label"]):
        name, label = row["path"], row["label"]
        if not name or not (label or "").strip():
            problems.append(f"{path}, line {number}: has no path or no label; fill it in")
        elif not (path.parent / name).is_file():
            problems.append(f"{path}, line {number}: there is no picture '{path.parent / name}'")
        else:
            files.append(name)
            labels.append(label.strip())
    return Collection(str(path), files, labels, reader_of(path)), problems


def _count_problems(found: Collection, to_learn: bool) -> Iterator[str]:
    names = found.names
    if not found.files:
        yield (
            f"{found.source}: holds no pictures; put them in one folder for each class "
            "(<class>/<picture>)"
        )
    elif len(names) == 1 and to_learn:
        yield f"{found.source}: has only the class '{names[0]}'; add a folder of another one"
    elif len(names) > MOST_CLASSES:
        yield (
            f"{found.source}: has {len(names)} classes, and {MOST_CLASSES} are the most; split "
            "them into several classifiers"
        )


def _digested(found: Collection) -> tuple[Collection, list[str]]:
    """With the SHA-256 of every file; one that cannot be read is a problem."""
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
    return (found if problems else replace(found, digests=digests)), problems


def _duplicates(found: Collection, to_learn: bool) -> tuple[Collection, list[str]]:
    """Each picture once, by its bytes, where it is learned from; every row elsewhere. A picture
    that stands in two classes is a problem.
    """
    first: dict[str, int] = {}
    kept, problems = [], []
    for i, (label, digest) in enumerate(zip(found.labels, found.digests, strict=True)):
        earlier = first.setdefault(digest, i)
        if earlier == i:
            kept.append(i)
        elif found.labels[earlier] != label:
            problems.append(
                f"{found.source}: '{found.files[earlier]}' and '{found.files[i]}' are the same "
                f"picture in the classes '{found.labels[earlier]}' and '{label}'; remove one"
            )
    copies = len(found.files) - len(kept) - len(problems)
    if not copies:
        return found, problems
    if not to_learn:
        note = f"copies of other pictures of the same class, which count too: {copies}"
        return replace(found, notes=[*found.notes, note]), problems
    files, labels, digests = (
        [column[i] for i in kept] for column in (found.files, found.labels, found.digests)
    )
    notes = [*found.notes, f"copies of pictures of the same class, left out: {copies}"]
    return Collection(found.source, files, labels, found.read, notes, digests), problems


def checked(found: Collection, to_learn: bool = True) -> tuple[Collection, list[str]]:
    """With digests, and what is wrong with the classes or with pictures in two of them.

    Args:
        to_learn: from them: each picture is kept once, and there must be two classes. Else every
            row is kept, and one class will do.
    """
    problems = [*_count_problems(found, to_learn), *twins(found.source, found.names)]
    if len(found.names) <= MOST_CLASSES:
        found, more = _digested(found)
        if not more:
            found, more = _duplicates(found, to_learn)
        problems += more
    return found, problems


def _is_csv(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() == ".csv"


def holds_pictures(path: Path) -> bool:
    """Whether a path is a folder, a zip or a CSV, and no picture."""
    if path.is_dir() or _is_csv(path) or path.suffix.lower() == ".zip":
        return True
    return path.is_file() and not PICTURE.search(path.name) and zipfile.is_zipfile(path)


def _check_place(path: Path) -> None:
    """Raises InputError for what is neither a folder, a complete zip nor a CSV."""
    if not path.exists():
        raise InputError(f"{path}: there is no such file or folder")
    if not path.is_dir() and not _is_csv(path) and not zipfile.is_zipfile(path):
        raise InputError(f"{path}: neither a folder, a complete zip nor a .csv of path,label")


def listed(path: Path | str) -> Collection:
    """All pictures of a folder or zip, at any depth, or all rows of a CSV with the column `path`,
    in order and without labels.

    Raises InputError if there are none, for a row without a path, and for an unsafe zip.
    """
    path = Path(path)
    _check_place(path)
    if _is_csv(path):
        rows = _rows(path, ["path"])
        empty = [number for number, row in rows if not row["path"]]
        if empty:
            raise InputError(f"{path}, line {empty[0]}: has no path; fill it in")
        files, notes = [row["path"] for _, row in rows], []
    else:
        pictures = Pictures(path)
        if unsafe := _unsafe(pictures):
            raise InputError(unsafe[0])
        files = pictures.names
        notes = [*pictures.notes, *passed_over(pictures.others), *_hidden(path)]
    if not files:
        raise InputError(f"{path}: holds no pictures" + "".join(f"; {note}" for note in notes))
    read = reader_of(path) if _is_csv(path) else pictures.read
    return Collection(str(path), files, [], read, notes)


def examine(path: Path | str, to_learn: bool = True) -> tuple[Collection, list[str]]:
    """What can be used of a folder, zip or CSV, and all that is wrong with it; as `checked`."""
    path = Path(path)
    _check_place(path)
    found, problems = _from_csv(path) if _is_csv(path) else _from_folder(path)
    if found.files or not problems:
        found, more = checked(found, to_learn)
        problems = list(dict.fromkeys([*problems, *more]))
    return found, problems


def first_of(problems: Sequence[str]) -> InputError:
    more = f" (and {len(problems) - 1} more: `gram check` lists them)" if problems[1:] else ""
    return InputError(problems[0] + more)


def read_collection(path: Path | str, to_learn: bool = True) -> Collection:
    """The labelled pictures of a folder, zip or CSV; `to_learn` as in `checked`.

    Raises InputError with the first problem: no pictures, one class, another layout, a picture in
    two classes, names that differ in case only, a zip entry that is unsafe.
    """
    found, problems = examine(path, to_learn)
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


def _read_below(folder: Path, name: str) -> bytes:
    return (folder / name).read_bytes()


def _read_packed(path: Path, name: str) -> bytes:
    return Pictures(path).read(name)


def reader_of(source: Path | str) -> Callable[[str], bytes]:
    """Reads pictures by the names that `read_collection` gave them, without looking at others.

    The reader raises InputError, OSError or KeyError for a picture that is not there any more.
    """
    path = Path(source)
    if path.is_dir():
        return partial(_read_below, path)
    if path.suffix.lower() == ".csv":
        return partial(_read_below, path.parent)
    return partial(_read_packed, path)
