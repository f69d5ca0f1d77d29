"""Removes what entries that are gone left behind: their outputs, and their stages in dvc.lock.

    python -m pipeline.tidy --dry      # name them
    python -m pipeline.tidy --cached   # only what DVC's cache keeps, so that nothing is lost
    python -m pipeline.tidy            # that, and what a stage wrote

`evaluate`, `report` and others depend on folders that several stages fill. What a removed method,
benchmark or seed left there would go into dvc.lock, and whoever clones lacks it: for them these
stages are stale. A path counts as left over if an output of dvc.yaml may be called so and no stage
has it, as output or as input, and git does not know it.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from itertools import chain
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.params import read_yaml
from pipeline.written import is_written

DATA = "data"
FILES = ("dvc.yaml", "study/dvc.yaml")  # the second one while there is a study
SHOWN = 6


def patterns(file: Path, top: Path) -> Iterator[str]:
    """What the outputs of a dvc.yaml may be called, `*` for an entry's name; from `top` on."""
    for stage in read_yaml(file).get("stages", {}).values():
        body = stage.get("do", stage)
        for out in body.get("outs", []):
            path = next(iter(out)) if isinstance(out, dict) else out
            if "${" in path:
                path = file.parent / body.get("wdir", ".") / re.sub(r"\$\{[^}]*\}", "*", path)
                yield os.path.relpath(path, top)


def left_over(top: Path, names: Iterable[str], outs: set[Path], deps: set[Path]) -> list[Path]:
    """The paths below `top`/data that one of the patterns fits and that nobody uses, neither as a
    whole nor a part of them. Nothing behind a link is looked at.

    Args:
        outs, deps: absolute paths; a folder that stages read and none of them fills is of people.
    """
    data = (top / DATA).resolve()
    kept = {path for used in outs | deps for path in (used, *used.parents)}
    whole = outs | {dep for dep in deps if not any(dep in out.parents for out in outs)}
    found = set()
    for name in names:
        for path in top.glob(name) if Path(name).parts[0] == DATA else ():
            inside = path.parent.resolve().is_relative_to(data)
            unfinished = path.name.startswith(".") or path.name.endswith(".tmp")
            if inside and not unfinished and path not in kept and not whole & set(path.parents):
                found.add(path)
    return sorted(found)


def remove(path: Path, data: Path) -> None:
    """A file, a link (not what it leads to) or a folder, and the folders above that are empty
    then.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
    for above in path.parents:
        if above == data or any(above.iterdir()):
            return
        above.rmdir()


def forget(lock: Path, known: set[str]) -> list[str]:
    """Takes the stages out of a dvc.lock that are none of `known`; says which."""
    from dvc.utils.serialize import modify_yaml

    stages = read_yaml(lock).get("stages", {}) if lock.exists() else {}
    gone = [name for name in stages if name not in known]
    if gone:
        with modify_yaml(str(lock)) as content:
            for name in gone:
                del content["stages"][name]
    return gone


def in_git(top: Path) -> set[Path]:
    """What git knows below data/; of people, not of stages."""
    done = subprocess.run(
        ["git", "ls-files", "-z", "--", DATA], cwd=top, check=False, capture_output=True, text=True
    )
    return {top / name for name in done.stdout.split("\0") if name}


def in_cache(repo: Any, path: Path) -> bool:
    """Whether DVC's cache has just these bytes, to the last file, or is what a link leads to."""
    from dvc_data.hashfile.build import build
    from dvc_data.hashfile.tree import Tree

    cache = repo.cache.local
    if path.is_symlink():
        return path.resolve().is_relative_to(Path(cache.path).resolve())
    made = build(cache, str(path), repo.fs, "md5", dry_run=True, ignore=repo.dvcignore)[2]
    parts = [digest.value for _, _, digest in made] if isinstance(made, Tree) else []
    return all(cache.exists(digest) for digest in [made.oid, *parts])


def told(paths: list[Path], top: Path) -> str:
    names = [str(path.relative_to(top)) for path in paths[:SHOWN]]
    return ", ".join([*names, *([f"{len(paths) - SHOWN} more"] if len(paths) > SHOWN else [])])


def tidy(repo: Any, dry: bool, cached: bool) -> None:
    top = Path(repo.root_dir)
    files = [top / name for name in FILES if (top / name).exists()]
    stages = list(repo.index.stages)
    outs = in_git(top) | {Path(out.fs_path) for stage in stages for out in stage.outs}
    deps = {Path(dep.fs_path) for stage in stages for dep in stage.deps if dep.protocol == "local"}
    names = chain.from_iterable(patterns(file, top) for file in files)
    left = left_over(top, names, outs, deps)
    if dry:
        if left:
            print(
                f"warning: {told(left, top)}: left by entries that are gone. No stage reads them, "
                "but dvc.lock would count them, and whoever clones lacks them; `make tidy` removes "
                "them",
                file=sys.stderr,
            )
        return
    for path in left:
        kept = in_cache(repo, path)
        word = "DVC's cache keeps it" if kept else "DVC's cache does not have it"
        if kept or (not cached and is_written(path)):
            remove(path, top / DATA)
            print(f"tidy: removed {path.relative_to(top)} ({word})")
            continue
        if not cached:
            word += f", and no stage wrote it as it is; `rm -r {path.relative_to(top)}` removes it"
        print(f"warning: {path.relative_to(top)} stays: {word}", file=sys.stderr)
    for file in files:
        known = {stage.name for stage in stages if Path(stage.dvcfile.path) == file}
        if gone := forget(file.with_name("dvc.lock"), known):
            print(f"tidy: {file.with_name('dvc.lock').relative_to(top)} forgets {', '.join(gone)}")


def main(arguments: list[str]) -> int:
    cli = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    which = cli.add_mutually_exclusive_group()
    which.add_argument("--dry", action="store_true", help="name what is left, remove nothing")
    which.add_argument("--cached", action="store_true", help="remove what DVC's cache keeps")
    args = cli.parse_args(arguments)
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo() as repo, nullcontext() if args.dry else repo.lock:
            tidy(repo, args.dry, args.cached)
    except (DvcException, InputError) as error:
        print(f"tidy: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
