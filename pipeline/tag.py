"""Gives the artifacts of dvc.yaml a version at this commit, so that others take them by name.

    python -m pipeline.tag v1.0.0     # git tags clusters@v1.0.0, coop-gram@v1.0.0, …; prints them

`make tag VERSION=v1.0.0` pushes them too; then `dvc artifacts get URL clusters` works anywhere,
once `make share` has brought the outputs.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.params import read_yaml
from pipeline.stage import warn

FILES = ("dvc.yaml", "dvc.lock", "params.yaml")


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], check=False, capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"git {arguments[0]}: {done.stderr.strip()}")
    return done.stdout.strip()


def check_version(version: str) -> None:
    from gto.versions import SemVer

    if not version or not SemVer.is_valid(version):
        raise InputError(f"'{version}' is no version; for example v1.0.0 (make tag VERSION=v1.0.0)")


def made_here(artifacts: dict[str, Any], lock: dict[str, Any]) -> tuple[list[str], list[str]]:
    """The artifacts whose path is an output of a stage in dvc.lock, and the others."""
    outs = {out["path"] for stage in lock["stages"].values() for out in stage.get("outs", [])}
    there = [name for name, artifact in artifacts.items() if artifact["path"] in outs]
    return there, [name for name in artifacts if name not in there]


def tag(version: str) -> list[str]:
    """The tags that name this commit, made where they are not there yet.

    Raises InputError if the commit is not what lies here, or a tag is another commit's.
    """
    check_version(version)
    if changed := _git("status", "--porcelain", "--", *FILES):
        names = ", ".join(line.split()[-1] for line in changed.splitlines())
        raise InputError(f"{names}: not committed, so a tag would name another state; commit first")
    artifacts = read_yaml(Path("dvc.yaml")).get("artifacts", {})
    there, missing = made_here(artifacts, read_yaml(Path("dvc.lock")))
    if missing:
        warn(f"{', '.join(missing)}: no stage in dvc.lock makes them; they get no tag")
    here = _git("rev-parse", "HEAD")
    taken = {name: f"{name}@{version}" for name in there}
    old = [t for t in taken.values() if _git("tag", "--list", t)]
    if wrong := [t for t in old if _git("rev-parse", f"{t}^{{commit}}") != here]:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise InputError(f"{wrong[0]}{more}: another commit has this name; take a higher version")
    for name, new in taken.items():
        if new not in old:
            _git("tag", "--annotate", new, "--message", artifacts[name].get("desc", name))
    return list(taken.values())


def main(arguments: list[str]) -> int:
    try:
        print("\n".join(tag(arguments[0] if arguments else "")))
    except InputError as error:
        print(f"tag: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
