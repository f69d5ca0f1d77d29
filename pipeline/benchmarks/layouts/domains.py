"""`<domain>/<class>/<picture>`, as Office, PACS and DomainNet are handed out: without parts, so
that each class of each domain is cut by a seed.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import pyarrow as pa

from pipeline.benchmarks.params import Split
from pipeline.benchmarks.reader import check_domains, numbered
from pipeline.errors import InputError
from pipeline.pictures import Pictures, check_classes, check_spellings, class_name

BETWEEN = "images"  # Office-31 has a folder of that name in each domain


def _fits(name: str) -> bool:
    parts = name.split("/")
    return len(parts) == 3 or (len(parts) == 4 and parts[1] == BETWEEN)


def _placed(pictures: Pictures) -> dict[tuple[str, str], list[str]]:
    """(domain, class) → its files, in path order."""
    found: dict[tuple[str, str], list[str]] = {}
    folders = set()
    top = pictures.top_folder(_fits)
    for name in pictures.names:
        parts = name.removeprefix(top).split("/")
        if len(parts) == 4 and parts[1] == BETWEEN:
            del parts[1]
        if len(parts) != 3:
            raise InputError(
                f"{pictures.path}: '{name}' does not fit <domain>/<class>/<picture>; name the "
                "folder of the domains in 'path', or sort the pictures into that layout"
            )
        folders.add(parts[1])
        found.setdefault((parts[0], class_name(parts[1])), []).append(name)
    check_spellings(pictures.path, folders)
    return found


def cut(files: Sequence[str], share: float, seed: str) -> tuple[list[str], list[str]]:
    """(train, test): `share` of the files at random, but one at least in each; all in test if
    `share` is 0.
    """
    shuffled = list(files)
    random.Random(seed).shuffle(shuffled)
    count = min(max(1, round(share * len(files))), len(files) - 1) if share else 0
    return sorted(shuffled[:count]), sorted(shuffled[count:])


def read_domains(pictures: Pictures, domains: Sequence[str] | None, split: Split) -> pa.Table:
    """The table of `SAMPLES` of some of the domains (None: of all), train before test.

    The part of a picture depends on `split` and on the other pictures of its class and domain
    alone: entries of `benchmarks:` with one split may name any domains of a dataset, and a picture
    that one of them tunes on is a test picture of none.

    Raises InputError for another layout, a domain that is not there, a class with too few pictures,
    or two classes that are one prompt.
    """
    placed = _placed(pictures)
    if not placed:
        raise InputError(f"{pictures.path}: holds no pictures")
    check_domains(pictures.path, "has", domains, {domain for domain, _ in placed})
    chosen = {at: files for at, files in placed.items() if domains is None or at[0] in domains}
    check_classes(pictures.path, {name for _, name in chosen})
    rows = []
    for (domain, name), files in chosen.items():
        if split.train and len(files) < 2:
            raise InputError(
                f"{pictures.path}: class '{name}' of domain '{domain}' has one picture, too few "
                "for a training and a test part; add some, remove the class, or give a 'split' "
                "of 'train: 0'"
            )
        train, test = cut(files, split.train, f"{split.seed}/{domain}/{name}")
        rows += [("train", domain, name, file) for file in train]
        rows += [("test", domain, name, file) for file in test]
    return numbered(pictures.path, sorted(rows, key=lambda row: (row[0] == "test", row[3])))
