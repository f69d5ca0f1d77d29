"""What a person hands in, checked before anything is computed."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gram.backbones import resolve
from gram.collection import Collection, checked, first_of, listed, read_collection
from gram.looking import as_bytes
from gram.prompted import Task
from pipeline.clip.backbone import Backbone, load_backbone
from pipeline.clip.digest import backbone_digest
from pipeline.errors import InputError

Say = Callable[[str], Any]
GIVEN = "pictures that were given"  # the source of a list of pictures


def silent(words: str) -> None:
    """For those who are told nothing."""


@dataclass(frozen=True)
class Prepared:
    """A task whose inputs are sound.

    Attributes:
        methods: that are tried, simplest first.
        place: the backbone's folder.
        digest: its SHA-256.
    """

    task: Task
    collection: Collection
    folds: int
    methods: list[str]
    place: Path
    digest: str


def checked_template(template: str) -> str:
    """The template; InputError if it does not hold `{}` once."""
    if template.count("{}") != 1 or "{" in template.replace("{}", ""):
        raise InputError(
            f"the template '{template}' must hold {{}} once, where the class name goes"
        )
    return template


def loaded(backbone: str | Path | None, say: Say = silent) -> tuple[Backbone, Path]:
    """A backbone and its folder; InputError if none is named."""
    if not backbone:
        raise InputError(
            "no backbone is given; give a folder in open_clip's layout (--backbone, backbone=)"
        )
    place = resolve(str(backbone), say)
    return load_backbone(place), place


def loaded_again(place: Path, name: str | Path | None, digest: str) -> Backbone:
    """The backbone of a classifier that was pickled without it.

    Args:
        place: where it lay. name: what it was called, asked where it does not lie there any more.

    Raises InputError if it is not there, or is another one.
    """
    backbone, where = loaded(place if place.is_dir() else name)
    if (found := backbone_digest(where)) != digest:
        raise InputError(
            f"{where}: is another backbone ({found[:12]}…) than the classifier was made with "
            f"({digest[:12]}…); say where that one is: set_params(backbone=…)"
        )
    return backbone


def _is_one_place(pictures: Any) -> bool:
    return isinstance(pictures, (str, Path))


def _warn(notes: Sequence[str]) -> None:
    """In Python, what was left out is a warning."""
    for note in notes:
        warnings.warn(note, stacklevel=4)


def _read_given(by_name: Mapping[str, Any], name: str) -> bytes:
    return as_bytes(by_name[name])


def readable(pictures: Any) -> tuple[Callable[[str], bytes], list[str]]:
    """How to read pictures, and their names: of a collection, a folder, zip or CSV (all of them, in
    order, whatever their classes), or a sequence of paths, PIL pictures or bytes.
    """
    if isinstance(pictures, Collection):
        return pictures.read, pictures.files
    if _is_one_place(pictures):
        found = listed(pictures)
        _warn(found.notes)
        return found.read, found.files
    given = list(pictures)
    names = [
        str(picture) if isinstance(picture, (str, Path)) else f"picture {place}"
        for place, picture in enumerate(given)
    ]
    return partial(_read_given, dict(zip(names, given, strict=True))), names


def checked_labels(labels: Any) -> list[Any]:
    """Labels of one type: text, truth values, or whole numbers.

    Raises InputError for labels in several columns, of several types, or missing.
    """
    if isinstance(labels, (str, bytes)) or getattr(labels, "ndim", 1) != 1:
        shape = getattr(labels, "shape", "of one text")
        raise InputError(f"labels are a list with one for each picture; these are {shape}")
    given = list(labels)
    kinds: dict[type, int] = {}
    for place, label in enumerate(given):
        plain = label.item() if isinstance(label, np.generic) else label
        known = isinstance(plain, (str, bool, int, float))
        if not known or (isinstance(plain, float) and not math.isfinite(plain)):
            raise InputError(
                f"label {place} is {plain!r}; a label is a class's name or a whole number: name "
                "the class, or leave the picture out"
            )
        if isinstance(plain, float) and not plain.is_integer():
            raise InputError(f"label {place} is {plain!r}, and a class is no measure; name classes")
        kinds.setdefault(type(plain), place)
    if len(kinds) > 1:
        (one, here), (other, there) = list(kinds.items())[:2]
        raise InputError(
            f"labels are of several types ({one.__name__} at {here}, {other.__name__} at "
            f"{there}); give them one"
        )
    return given


def collected(pictures: Any, labels: Sequence[Any] | None, to_learn: bool = True) -> Collection:
    """Labelled pictures as one collection; `to_learn` and InputError as of `read_collection`."""
    if isinstance(pictures, Collection):
        return pictures
    if labels is None:
        if not _is_one_place(pictures):
            raise InputError("pictures that are no folder, zip or CSV need labels")
        found = read_collection(pictures, to_learn)
        _warn(found.notes)
        return found
    if _is_one_place(pictures):
        raise InputError("labels belong to a list of pictures; a folder tells its own")
    read, names = readable(pictures)
    wanted = checked_labels(labels)
    if len(wanted) != len(names):
        raise InputError(f"there are {len(names)} pictures and {len(wanted)} labels; pair them up")
    found, problems = checked(Collection(GIVEN, names, wanted, read), to_learn)
    if problems:
        raise first_of(problems)
    _warn(found.notes)
    return found
