"""What every layout shares: lists of pictures, what must hold of them, and folders read without
asking about each file.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.errors import InputError
from pipeline.pictures import PICTURE, class_name, left_out, lines_in, same_words


class Item(NamedTuple):
    """A picture: its path in the dataset's folder, its label from 0, its class's name."""

    file: str
    label: int
    name: str


Parts = dict[str, list[Item]]  # train, val, test; an empty list where a dataset has no such part


def _names(parts: Parts, where: Path) -> dict[int, str]:
    """Label → name; InputError for a label of two names, and for a picture that is listed twice."""
    place: dict[str, tuple[str, Item]] = {}
    names: dict[int, str] = {}
    for part, items in parts.items():
        for item in items:
            if names.setdefault(item.label, item.name) != item.name:
                raise InputError(
                    f"{where}: label {item.label} is '{names[item.label]}' and, of {item.file} in "
                    f"{part}, '{item.name}'; give it one name"
                )
            earlier, first = place.setdefault(item.file, (part, item))
            if earlier != part:
                raise InputError(
                    f"{where}: {item.file} is in {earlier} and in {part}; leave it in one of them"
                )
            if first is not item:
                labels = (
                    "twice"
                    if first.label == item.label
                    else f"as '{first.name}' and as '{item.name}'"
                )
                raise InputError(
                    f"{where}: {item.file} is in {part} {labels}; leave one of the two rows"
                )
    return names


def _check_twins(names: dict[int, str], where: Path) -> None:
    """InputError for two labels of one name."""
    twins: dict[str, int] = {}
    for label, name in sorted(names.items()):
        first = twins.setdefault(same_words(name), label)
        if first != label:
            called = (
                f"both called '{name}'"
                if class_name(names[first]) == class_name(name)
                else f"called '{names[first]}' and '{name}'"
            )
            raise InputError(
                f"{where}: labels {first} and {label} are {called}, which no prompt tells apart; "
                "rename or merge them"
            )


def check_parts(parts: Parts, where: Path, one_name: bool = True) -> None:
    """Raises InputError naming `where`, the class and the remedy.

    Labels must count from 0 without a gap and have one name each, and no two the same one (unless
    `one_name` is False); there must be two classes at least, all in test and, if there is a train
    part, in it too; no picture may be in two parts.
    """
    names = _names(parts, where)
    labels = {part: {item.label for item in items} for part, items in parts.items()}
    if not labels["test"]:
        raise InputError(f"{where}: has no test pictures; nothing could be judged")
    gap = next((label for label in range(len(names)) if label not in names), None)
    if gap is not None:
        raise InputError(
            f"{where}: no picture has label {gap}, but some have label {max(names)}; labels count "
            "from 0 without a gap"
        )
    if one_name:
        _check_twins(names, where)
    if len(names) < 2:
        raise InputError(
            f"{where}: has only the class '{names[0]}', so the new half is empty; base and new "
            "halves need two classes at least"
        )
    for part in ("train", "test"):
        lacking = sorted(set(names) - labels[part])
        if labels[part] and lacking:
            raise InputError(
                f"{where}: class '{names[lacking[0]]}' (label {lacking[0]}) has no picture in "
                f"{part}; add some, or remove the class and renumber the others"
            )


def in_folder(folder: str, file: str, where: str) -> str:
    """`folder`/`file` as a path in the dataset's folder. Raises InputError naming `where` for a
    path that leads out of it.
    """
    if "\\" in file or not {"", ".", ".."}.isdisjoint(file.split("/")):
        raise InputError(
            f"{where}: '{file}' is no plain path inside the dataset's folder; mend or remove that "
            "row"
        )
    return f"{folder}/{file}" if folder else file


def check_files(parts: Parts, top: Path, where: Path) -> None:
    """Raises InputError saying how many pictures of the lists are not there, and the first of
    them; each folder is listed once.
    """
    listed: dict[str, set[str]] = {}
    missing = []
    for item in (item for items in parts.values() for item in items):
        folder, _, name = item.file.rpartition("/")
        if folder not in listed:
            listed[folder] = set(os.listdir(top / folder)) if (top / folder).is_dir() else set()
        if name not in listed[folder]:
            missing.append(item.file)
    if missing:
        total = sum(map(len, parts.values()))
        raise InputError(
            f"{where}: {len(missing)} of its {total} pictures are not there, the first is "
            f"{top / missing[0]}; unpack the dataset's pictures again"
        )


def class_folders(top: Path) -> list[str]:
    """Names of the folders in `top`, sorted. Raises InputError if there is no `top`, or none in
    it.
    """
    if not top.is_dir():
        raise InputError(
            f"{top}: there is no such folder; unpack the dataset there (docs/benchmarks.md has "
            "the layouts)"
        )
    with os.scandir(top) as entries:
        found = sorted(
            entry.name for entry in entries if not left_out(entry.name) and entry.is_dir()
        )
    if not found:
        raise InputError(
            f"{top}: holds no folders of classes; sort the pictures into one folder per class"
        )
    return found


def pictures_in(top: Path, folder: str) -> list[str]:
    """Sorted paths `folder`/picture; by name alone, as a call per file would take minutes for a
    million of them. None is an InputError.
    """
    found = sorted(
        name for name in os.listdir(top / folder) if not left_out(name) and PICTURE.search(name)
    )
    if not found:
        raise InputError(f"{top / folder}: holds no pictures; unpack the dataset again")
    return [f"{folder}/{name}" for name in found]


def no_such_list(path: Path) -> InputError:
    return InputError(
        f"{path}: there is no such file; put the dataset's own lists there, or the reference's "
        "split file into the dataset's folder (docs/benchmarks.md)"
    )


def _text(path: Path) -> str:
    try:
        return "\n".join(lines_in(path.read_bytes(), path))
    except FileNotFoundError:
        raise no_such_list(path) from None


def lines_of(path: Path) -> Iterator[tuple[str, str]]:
    """("file, line n", stripped line) of the lines that are not empty. Raises InputError if
    there is no such file, or no text in it.
    """
    for number, line in enumerate(_text(path).split("\n"), 1):
        if line.strip():
            yield f"{path}, line {number}", line.strip()


def object_of(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises InputError if there is no such file, or something else
    in it.
    """
    try:
        content = json.loads(_text(path))
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error}); obtain it again") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds no JSON object; obtain it again")
    return content


def _shuffled(items: list[Item]) -> Iterator[list[Item]]:
    """The items of one label after another, each label's shuffled; always in the same way."""
    generator = random.Random(0)
    by_label: dict[int, list[Item]] = {}
    for item in items:
        by_label.setdefault(item.label, []).append(item)
    for of_label in by_label.values():
        generator.shuffle(of_label)
        yield of_label


def carve_val(items: list[Item]) -> tuple[list[Item], list[Item]]:
    """Train and val of a dataset without a val part of its own: a fifth of each class, as many
    as the reference takes.
    """
    train: list[Item] = []
    val: list[Item] = []
    for of_label in _shuffled(items):
        count = round(len(of_label) * 0.2)
        val += of_label[:count]
        train += of_label[count:]
    return train, val


def split_in_three(items: list[Item]) -> Parts:
    """Half, a fifth and the rest of each class: the reference's proportions for a dataset
    without parts.
    """
    parts: Parts = {"train": [], "val": [], "test": []}
    for of_label in _shuffled(items):
        first, second = round(len(of_label) * 0.5), round(len(of_label) * 0.2)
        parts["train"] += of_label[:first]
        parts["val"] += of_label[first : first + second]
        parts["test"] += of_label[first + second :]
    return parts
