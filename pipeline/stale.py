"""Which stages each key of params.yaml makes stale, as a table for people (docs/stale.md).

    python -m pipeline.stale > docs/stale.md

Read from dvc.yaml and study/stages.yaml alone; nothing is run. What lies downstream runs too where
an output changes, and only there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.gram.params import UNTRACKED
from pipeline.params import read_yaml

ROOT = Path(__file__).resolve().parents[1]
FILES = {"": "dvc.yaml", "study/": "study/stages.yaml"}
# Tables of entries with names of one's own: `*` stands for the name.
TABLES = (
    "episodes labelled benchmarks templates protocols methods.titles methods.zero_shot "
    "methods.direct methods.meta world.webs world.benchmarks world.truths study.episodes "
    "study.labelled study.methods.titles study.methods.direct study.methods.meta"
).split()
LEAVES = ("tuning.batch_of", "tuning.lr_factor_of", "source.obtain")  # mappings that are one value


def keys_of(values: dict[str, Any], above: str = "") -> Iterator[str]:
    """Dotted keys of all values; lists, and the mappings of LEAVES, are one value."""
    for name, value in values.items():
        key = f"{above}{name}"
        if isinstance(value, dict) and value and key not in LEAVES:
            yield from keys_of(value, f"{key}.")
        else:
            yield key


def general(key: str) -> str:
    """The key with `*` for an entry's name."""
    for table in TABLES:
        if key.startswith(f"{table}."):
            return ".".join([table, "*", *key.removeprefix(f"{table}.").split(".")[1:]])
    return key


def readers() -> dict[str, list[str]]:
    """Stage → the keys that it depends on, `*` for an entry's name."""
    found = {}
    for prefix, file in FILES.items():
        for name, stage in read_yaml(ROOT / file)["stages"].items():
            params = stage.get("do", stage).get("params", [])
            found[prefix + name] = [re.sub(r"\$\{[^}]*\}", "*", key) for key in params]
    return found


def depends(key: str, on: str) -> bool:
    """Whether a key is another, or inside it."""
    return key == on or key.startswith(f"{on}.")


def stale(key: str, of: dict[str, list[str]]) -> list[str]:
    """The stages that a general key makes stale."""
    return [name for name, params in of.items() if any(depends(key, on) for on in params)]


def of_entries() -> dict[str, list[str]]:
    """Table → the stages that there are one of for each entry."""
    found: dict[str, list[str]] = {}
    for prefix, file in FILES.items():
        for name, stage in read_yaml(ROOT / file)["stages"].items():
            over = stage.get("foreach"), *stage.get("matrix", {}).values()
            for table in filter(None, over):
                found.setdefault(table.strip("${}"), []).append(prefix + name)
    return found


def page() -> str:
    of = readers()
    keys = dict.fromkeys(general(key) for key in keys_of(read_yaml(ROOT / "params.yaml")))
    lines = [
        "# What a key of params.yaml reruns",
        "",
        "`python -m pipeline.stale > docs/stale.md` writes this page from `dvc.yaml` and "
        "`study/stages.yaml`; a test compares it. `*` is an entry's name, and the stages of that "
        "entry are meant. What lies downstream runs where an output changes, and only there. Every "
        "edit of the file reruns `params` too, the check of the whole, which changes nothing.",
        "",
        "| key | stages |",
        "|---|---|",
    ]
    for key in keys:
        told = ", ".join(stale(key, of)) or ("nothing" if key in UNTRACKED else "—")
        lines.append(f"| `{key}` | {told} |")
    lines += ["", "An entry more or less makes or drops its stages:", "", "| table | stages |"]
    lines += ["|---|---|", *(f"| `{t}` | {', '.join(s)} |" for t, s in of_entries().items())]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(page(), end="")
