"""Git's merge of `dvc.lock`, stage by stage: two branches that ran different stages need no hand
work.

    git config merge.dvc-lock.driver "$(python -m pipeline.merge_lock --driver)"

`make team` does it, with the environment's own interpreter; where that cannot run, git merges the
text and marks its conflicts.

A stage that both sides ran with different outcome keeps ours: neither is the outcome of the merged
inputs, so `dvc repro` finds it stale and runs it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.params import read_yaml


def merge_stages(
    base: dict[str, Any], ours: dict[str, Any], theirs: dict[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """The stages of the merged lock, and the names of those that both sides changed, each in its
    own way.
    """
    merged, both = {}, []
    for name in [*ours, *(name for name in theirs if name not in ours)]:
        before, mine, other = (side.get(name) for side in (base, ours, theirs))
        if mine != other and mine != before and other != before:
            both.append(name)
            kept = mine or other
        else:
            kept = other if mine == before else mine
        if kept is not None:
            merged[name] = kept
    return merged, both


def driver(executable: str) -> str:
    """The command for git's configuration, in ASCII without a quote in front: DVC's workers copy
    this file with a reader of their own, and every queued experiment fails at anything else.
    """
    word = f"'{executable}'"
    if not executable.isascii():
        octal = "".join(chr(b) if b < 128 else f"\\{b:03o}" for b in os.fsencode(executable))
        word = f"\"$(printf '{octal}')\""
    return f"env {word} -m pipeline.merge_lock %O %A %B || git merge-file %A %O %B"


def _stages(path: Path) -> dict[str, Any]:
    """Without a common ancestor, git hands an empty file."""
    return read_yaml(path)["stages"] if path.stat().st_size else {}


def main() -> None:
    from dvc.utils.serialize import dump_yaml

    if sys.argv[1:] == ["--driver"]:
        print(driver(sys.executable))
        return
    base, ours, theirs = map(Path, sys.argv[1:4])
    try:
        stages, both = merge_stages(_stages(base), _stages(ours), _stages(theirs))
        dump_yaml(str(ours), {"schema": "2.0", "stages": stages})
    except (InputError, KeyError) as error:
        sys.exit(f"merge_lock: error: {error}; take one side and run `dvc repro`")
    if both:
        print(
            f"dvc.lock: {len(both)} stages ran on both sides ({', '.join(both)}); `dvc repro` "
            "runs them on what is merged"
        )


if __name__ == "__main__":
    main()
