"""The reference's split files: `{"train" | "val" | "test": [[path, label, class name], …]}`."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline.benchmarks.layouts.items import Item, Parts, check_parts, in_folder, object_of
from pipeline.errors import InputError


def read_split(path: Path, folder: str = "") -> Parts:
    """The parts in the order of the lists, paths below `folder`; the pictures themselves are not
    looked for.

    Raises InputError naming the file, the row and the remedy.
    """
    split = object_of(path)
    parts: Parts = {}
    for part in ("train", "val", "test"):
        rows = split.get(part)
        if not isinstance(rows, list):
            raise InputError(
                f"{path}: has no list '{part}'; a split file holds the lists train, val and test"
            )
        parts[part] = []
        for number, row in enumerate(rows):
            where = f"{path}: row {number} of '{part}'"
            match row:
                case [str() as file, int() as label, str() as name] if (
                    name.strip() and label >= 0 and not isinstance(label, bool)
                ):
                    parts[part].append(Item(in_folder(folder, file, where), label, name))
                case _:
                    raise InputError(
                        f"{where} is {json.dumps(row)[:80]}, not [path, label, class name]; mend "
                        "or remove it"
                    )
    if not parts["train"]:
        raise InputError(f"{path}: 'train' is empty; there would be nothing to draw shots from")
    check_parts(parts, path)
    return parts
