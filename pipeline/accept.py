"""Takes an edit of the code for harmless: what is stale for its code alone counts as made with it.

    python -m pipeline.accept

`dvc commit` by itself would take changed parameters and inputs for harmless too. Whoever accepts an
edit that does act keeps results that no run would give.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

CODE = "data/code/"


def _dvc(*arguments: str) -> str:
    done = subprocess.run(["dvc", *arguments], check=False, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"accept: error: dvc {arguments[0]}: {done.stderr.strip()}")
    return done.stdout


def for_code_alone(status: dict[str, list[Any]]) -> tuple[list[str], list[str]]:
    """Of `dvc status --json`: the stages whose code alone has changed; those for which more has."""
    alone, more = [], []
    for stage, changes in status.items():
        kinds = {kind for change in changes if isinstance(change, dict) for kind in change}
        plain = all(isinstance(change, dict) for change in changes)
        paths = [p for c in changes if isinstance(c, dict) for p in c.get("changed deps", {})]
        only_code = plain and kinds == {"changed deps"} and all(p.startswith(CODE) for p in paths)
        (alone if only_code else more).append(stage)
    return alone, more


def main() -> None:
    _dvc("repro", "--quiet", "code")
    alone, more = for_code_alone(json.loads(_dvc("status", "--json")))
    if alone:
        _dvc("commit", "--quiet", "--force", *alone)
    print(f"accept: {len(alone)} stages count as made with the code of now: {', '.join(alone)}")
    if more:
        print(
            f"accept: {len(more)} are stale for other reasons too, or lack their outputs here, and "
            f"stay so: {', '.join(more)}"
        )


if __name__ == "__main__":
    main()
