"""What a person hands in, checked before anything is computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gram.backbones import resolve
from gram.collection import Collection, copies_and_counts, first_of, read_collection
from gram.looking import as_bytes
from gram.prompted import Task
from pipeline.clip.backbone import Backbone, load_backbone
from pipeline.errors import InputError

Say = Callable[[str], Any]


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


def _is_one_place(pictures: Any) -> bool:
    return isinstance(pictures, (str, Path))


def readable(pictures: Any) -> tuple[Callable[[str], bytes], list[str]]:
    """How to read pictures, and their names: of a collection, a folder, zip or CSV, or a
    sequence of paths, PIL pictures or bytes.
    """
    if isinstance(pictures, Collection):
        return pictures.read, pictures.files
    if _is_one_place(pictures):
        found = read_collection(pictures)
        return found.read, found.files
    listed = list(pictures)
    names = [
        str(picture) if isinstance(picture, (str, Path)) else f"picture {place}"
        for place, picture in enumerate(listed)
    ]
    by_name = dict(zip(names, listed, strict=True))
    return lambda name: as_bytes(by_name[name]), names


def collected(pictures: Any, labels: Sequence[str] | None) -> Collection:
    """Labelled pictures as one collection; raises InputError as `read_collection` does."""
    if isinstance(pictures, Collection):
        return pictures
    if labels is None:
        if not _is_one_place(pictures):
            raise InputError("pictures that are no folder, zip or CSV need labels")
        return read_collection(pictures)
    if _is_one_place(pictures):
        raise InputError("labels belong to a list of pictures; a folder tells its own")
    read, names = readable(pictures)
    wanted = [str(label) for label in labels]
    if len(wanted) != len(names):
        raise InputError(f"there are {len(names)} pictures and {len(wanted)} labels; pair them up")
    found, problems = copies_and_counts(Collection("pictures", names, wanted, read))
    if problems:
        raise first_of(problems)
    return found
