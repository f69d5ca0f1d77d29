"""ImageNet and the four datasets that share its classes: folders by synset, and names in
`classnames.txt`.

The reference lists folders in the file system's order; here they are sorted, so that a draw is the
same everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from pipeline.benchmarks.layouts.items import Item, Parts, class_folders, lines_of, pictures_in
from pipeline.errors import InputError, quoted


def _names(top: Path) -> tuple[Path, dict[str, str]]:
    """`classnames.txt` in the dataset's folder, else in ImageNet's beside it: synset → name,
    synsets sorted.

    Two synsets may have one name: the field's own list calls two of them "missile" and two
    "sunglasses".
    """
    own, beside = top / "classnames.txt", top.parent / "imagenet" / "classnames.txt"
    path = own if own.exists() else beside
    if not path.exists():
        raise InputError(
            f"{own}: there is no such file, nor {beside}; put the field's list of ImageNet's "
            "class names (lines '<synset> <name>') there"
        )
    names: dict[str, str] = {}
    before = ""
    for where, line in lines_of(path):
        synset, _, name = line.partition(" ")
        if not name:
            raise InputError(f"{where}: {quoted(line)} is not '<synset> <name>'; mend it")
        if synset <= before:
            raise InputError(
                f"{where}: {synset} stands after {before}; the synsets must be in sorted order, "
                "which is the order of the labels"
            )
        names[synset] = name.strip()
        before = synset
    return path, names


def _items(top: Path, folder: str, classes: Iterable[tuple[str, str]]) -> list[Item]:
    """Pictures of (class folder, name) in that order, which numbers the labels."""
    return [
        Item(f"{folder}/{file}", label, name)
        for label, (synset, name) in enumerate(classes)
        for file in pictures_in(top / folder, synset)
    ]


def _same(folders: list[str], expected: Iterable[str], where: Path, path: Path) -> None:
    for strange, what in (
        (set(folders) - set(expected), f"has a folder that {path} does not name"),
        (set(expected) - set(folders), f"lacks a folder that {path} names"),
    ):
        if strange:
            raise InputError(
                f"{where}: {what}, {min(strange)}, and {len(strange) - 1} more of that kind; "
                "there must be one per line"
            )


def _all_classes(top: Path, folder: str) -> list[Item]:
    path, names = _names(top)
    _same(class_folders(top / folder), names, top / folder, path)
    return _items(top, folder, names.items())


def imagenet(top: Path, folder: str) -> Parts:
    """Shots from the training pictures, judged on ILSVRC's validation pictures; there is no val
    part.
    """
    return {
        "train": _all_classes(top, f"{folder}/train"),
        "val": [],
        "test": _all_classes(top, f"{folder}/val"),
    }


def imagenet_sketch(top: Path, folder: str) -> Parts:
    return {"train": [], "val": [], "test": _all_classes(top, folder)}


def imagenetv2(top: Path, folder: str) -> Parts:
    """Folder i has line i of the names, counted from 0."""
    path, names = _names(top)
    folders = class_folders(top / folder)
    if len(folders) != len(names):
        raise InputError(
            f"{top / folder}: has {len(folders)} folders, but {path} has {len(names)} lines; "
            "there must be one folder per line"
        )
    _same(folders, map(str, range(len(names))), top / folder, path)
    return {
        "train": [],
        "val": [],
        "test": _items(top, folder, ((str(i), name) for i, name in enumerate(names.values()))),
    }


def some_classes(top: Path, folder: str) -> Parts:
    """ImageNet-A and -R: labels number the folders that are there, in sorted order; the head has
    their names alone.
    """
    path, names = _names(top)
    folders = class_folders(top / folder)
    strange = [synset for synset in folders if synset not in names]
    if strange:
        raise InputError(
            f"{top / folder}: {path} does not name the folder {strange[0]}; rename or remove it"
        )
    return {
        "train": [],
        "val": [],
        "test": _items(top, folder, ((synset, names[synset]) for synset in folders)),
    }


IMAGENETS: dict[str, Callable[[Path, str], Parts]] = {
    "imagenet": imagenet,
    "imagenetv2": imagenetv2,
    "imagenet_sketch": imagenet_sketch,
    "imagenet_a": some_classes,
    "imagenet_r": some_classes,
}
