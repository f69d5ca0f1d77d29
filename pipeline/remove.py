"""Takes an entry out of params.yaml wherever it stands: a method, or a benchmark.

    python -m pipeline.remove benchmarks.food methods.meta.unigram

With a benchmark go its template, what is tuned on it, its places among targets and in the study,
and the drawing of its pictures if no one else reads them; with a method its title and its pairs.
The file keeps its form and comments, and is written only if it is sound then. Outputs are for
`make tidy`.
"""

from __future__ import annotations

import difflib
import sys
from itertools import takewhile
from pathlib import Path
from typing import Any

from pipeline.artifacts import replacing
from pipeline.errors import InputError
from pipeline.params import did_you_mean, read_yaml
from pipeline.schema import check

PARAMS = Path("params.yaml")
# table of methods → whose it is, and its kind
METHODS = {f"methods.{kind}": ("", kind) for kind in ("zero_shot", "direct", "meta")} | {
    f"study.methods.{kind}": ("study.", kind) for kind in ("direct", "meta")
}


def _at(values: Any, key: str) -> Any:
    """The value at a dotted key; an empty mapping where there is none."""
    for part in filter(None, key.split(".")):
        values = values.get(part) or {}
    return values


def _drop(tables: Any, key: str, *gone: Any) -> None:
    """Takes names out of the mapping, or items out of the list, that stands at a key."""
    held = tables[key]
    for one in gone:
        del held[one if isinstance(held, dict) else held.index(one)]
    if not held:
        # YAML's writer puts what is empty behind the comments below the key, where it is no YAML
        tables.ca.items.pop(key, None)  # `with_comments` brings them back
        tables[key] = type(held)()


def without_benchmark(top: dict[str, Any], name: str) -> list[str]:
    """Takes a benchmark out of all of params.yaml, in place; returns the keys that it stood at."""
    gone = []
    path = _at(top, f"benchmarks.{name}").get("path") or f"data/world/{name}.zip"
    for table in ("benchmarks", "templates", "protocols"):
        if name in top[table]:
            _drop(top, table, name)
            gone.append(f"{table}.{name}")
    lists = [
        (protocols, kind, f"protocols.{source}.{kind}")
        for source, protocols in top["protocols"].items()
        for kind in ("cross_domain", "cross_dataset")
    ]
    for owner, kind, key in [*lists, (top["study"], "benchmarks", "study.benchmarks")]:
        if name in (owner.get(kind) or []):
            _drop(owner, kind, name)
            gone.append(key)
    tables = (top["benchmarks"], top["labelled"], top["study"]["labelled"])
    read = {entry.get("path") for table in tables for entry in table.values()}
    drawn = Path(path).stem
    of_none = path == f"data/world/{drawn}.zip" and path not in read
    if of_none and drawn in _at(top, "world.benchmarks"):
        _drop(top["world"], "benchmarks", drawn)
        gone.append(f"world.benchmarks.{drawn}")
    return gone


def without_method(top: dict[str, Any], owner: str, table: str, name: str) -> list[str]:
    """Takes a method of the main table or of the study out, in place; returns where it stood."""
    methods = _at(top, f"{owner}methods")
    gone = []
    for kind in (table, "titles"):
        if name in (methods.get(kind) or {}):
            _drop(methods, kind, name)
            gone.append(f"{owner}methods.{kind}.{name}")
    place = "study" if owner else "report"
    if named := [pair for pair in top[place]["pairs"] if name in pair]:
        _drop(top[place], "pairs", *named)
        gone.append(f"{place}.pairs")
    return gone


def without(top: dict[str, Any], key: str) -> list[str]:
    """Takes an entry out of params.yaml wherever it stands, in place.

    Returns:
        The keys that it stood at.

    Raises:
        InputError if the key is none of a benchmark or a method, or nothing stands there.
    """
    table, _, name = key.rpartition(".")
    if table == "benchmarks":
        gone = without_benchmark(top, name)
    elif table in METHODS:
        gone = without_method(top, *METHODS[table], name)
    else:
        raise InputError(
            f"'{key}': an entry of {', '.join(['benchmarks', *METHODS])} can be removed, for "
            "example benchmarks.food"
        )
    if not gone:
        raise InputError(f"'{key}': there is none{did_you_mean(name, _at(top, table))}")
    return gone


def with_comments(before: list[str], after: list[str]) -> list[str]:
    """The lines `after`, and the comments that stood right before or behind what was taken out:
    they may be of what follows, and YAML's writer drops them.
    """
    is_comment = lambda line: line.lstrip().startswith("#")
    lines = []
    matcher = difflib.SequenceMatcher(None, before, after, autojunk=False)
    for what, i, k, m, n in matcher.get_opcodes():
        lines += after[m:n]
        if what != "equal":
            lost = before[i:k]
            if what == "replace":  # a table that is empty now
                lost = [line for line in lost if is_comment(line)]
            head = list(takewhile(is_comment, lost))
            tail = list(takewhile(is_comment, reversed(lost[len(head) :])))
            lines += [line for line in [*head, *reversed(tail)] if line not in after[m:n]]
    return lines


def remove(path: Path, keys: list[str]) -> list[str]:
    """Takes entries out of a parameter file; see `without`.

    Raises InputError, with the file as it was, if what is left would not be sound.
    """
    from dvc.utils.serialize import modify_yaml

    read_yaml(path)  # what is no parameter file is told of
    before = path.read_text(encoding="utf-8")
    with replacing(path) as temporary:
        temporary.write_text(before, encoding="utf-8")
        try:
            with modify_yaml(str(temporary)) as top:
                gone = [place for key in keys for place in without(top, key)]
        except (AttributeError, KeyError, TypeError):
            check(path)  # a table is none
            raise
        after = temporary.read_text(encoding="utf-8")
        lines = with_comments(before.splitlines(), after.splitlines())
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
        try:
            check(temporary)
        except InputError as error:
            complaint = str(error).replace(str(temporary), str(path))
            raise InputError(f"without {', '.join(keys)}:\n{complaint}") from None
    return gone


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0].startswith("-"):
        print(__doc__)
        return 0 if arguments else 2
    try:
        gone = remove(PARAMS, arguments)
    except InputError as error:
        print(f"remove: error: {error}", file=sys.stderr)
        return 1
    print(f"remove: {', '.join(gone)} taken out of {PARAMS}; next: `make repro`")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
