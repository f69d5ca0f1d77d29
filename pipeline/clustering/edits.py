"""Hand-made changes to the topics: merge, rename, drop."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from pipeline.clustering.words import plain
from pipeline.errors import InputError
from pipeline.params import Section, did_you_mean, read_yaml, validate


class Edits(Section):
    """The file that `label.edits` names; topics are called by the names that the labels gave
    them, and those without a name "topic N", as the label stage says.
    """

    # the new name → the topics that become one
    merge: dict[str, Annotated[list[str], Field(min_length=2)]]
    rename: dict[str, str]
    drop: list[str]


def load_edits(path: Path | str) -> Edits:
    return validate(Edits, read_yaml(path), "", path)


def handle(name: str | None, number: int) -> str:
    """What a topic is called in the file."""
    return f"topic {number}" if name is None else name


def apply_edits(
    topic: np.ndarray, names: Sequence[str | None], edits: Edits, path: Path | str
) -> tuple[np.ndarray, list[str | None]]:
    """(n,) topics and the topics' names (None: it has none) → both after the edits.

    Topics are numbered anew in the order of the first that they are made of; −1 stays outside.

    Raises InputError naming the file and the topic: one that does not exist, one that is edited
    twice, or a name that two topics would have.
    """
    number = {handle(name, i): i for i, name in enumerate(names)}
    edited: set[str] = set()

    def find(given: str) -> int:
        name = given if given in number else plain(given)  # as topics' words are spelled
        if name not in number:
            raise InputError(f"{path}: there is no topic '{given}'{did_you_mean(given, number)}")
        if name in edited:
            raise InputError(f"{path}: topic '{name}' is edited twice; leave one of the two")
        edited.add(name)
        return number[name]

    goes_to, new_name = list(range(len(names))), list(names)
    for name, members in edits.merge.items():
        rows = sorted(find(member) for member in members)
        new_name[rows[0]] = name
        for row in rows:
            goes_to[row] = rows[0]
    for old, new in edits.rename.items():
        new_name[find(old)] = new
    dropped = {find(name) for name in edits.drop}
    kept = sorted(set(goes_to) - dropped)
    if len(kept) < 2:
        raise InputError(f"{path}: leaves {len(kept)} topics; merge or drop fewer")
    names_after = [new_name[row] for row in kept]
    twice = [name for name in names_after if name is not None and names_after.count(name) > 1]
    if twice:
        raise InputError(
            f"{path}: two topics would be called '{twice[0]}'; merge them, or choose another name"
        )
    place = {row: i for i, row in enumerate(kept)}
    table = np.array(
        [-1 if row in dropped else place[goes_to[row]] for row in range(len(names))] + [-1],
        np.int32,
    )
    return table[topic], names_after  # the last entry is what −1 finds
