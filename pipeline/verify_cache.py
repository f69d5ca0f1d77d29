"""Are the files in DVC's cache what their names say? Damaged ones are removed, so that DVC restores
them.

    python -m pipeline.verify_cache

DVC hashes a file when it comes and trusts it from then on: a bit that flips on a disk later would
be used, and pushed.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import InputError
from pipeline.params import read_yaml

NAME = re.compile(r"[0-9a-f]{30}(\.dir)?")  # of DVC's; what else lies there is a person's


def _is_whole(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "md5").hexdigest()
    except OSError:  # the disk does not give it back
        return False
    return digest == path.parent.name + path.name.removesuffix(".dir")


def damaged(store: Path) -> Iterator[Path]:
    """The files of a DVC store of MD5 names whose content has another hash, or cannot be read."""
    for path in sorted(store.glob("[0-9a-f][0-9a-f]/*")):
        if path.is_file() and NAME.fullmatch(path.name) and not _is_whole(path):
            yield path


def names_of(store: Path, lock: Path) -> dict[str, str]:
    """Hash → path of the outputs in dvc.lock, and of the files in those that are folders.

    Listings that are damaged name nothing.
    """
    names: dict[str, str] = {}
    outs = (o for s in read_yaml(lock).get("stages", {}).values() for o in s.get("outs", []))
    for digest, path in ((out["md5"], out["path"]) for out in outs if "md5" in out):
        names[digest] = path
        listing = store / digest[:2] / digest[2:]
        if digest.endswith(".dir") and listing.is_file() and _is_whole(listing):
            entries = json.loads(listing.read_bytes())
            names |= {entry["md5"]: f"{path}/{entry['relpath']}" for entry in entries}
    return names


def _remove(path: Path) -> str:
    """Removes a file of the cache, a colleague's too where the folder is the group's; says what
    became of it.
    """
    try:
        path.unlink()
    except OSError as error:  # on a disk that can only be read
        return f"cannot be removed ({error.strerror})"
    return "removed"


def main() -> None:
    done = subprocess.run(["dvc", "cache", "dir"], check=False, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"verify_cache: error: {done.stderr.strip()}")
    store = Path(done.stdout.strip()) / "files" / "md5"
    try:
        names = names_of(store, Path("dvc.lock"))
    except InputError as error:
        print(f"verify_cache: files cannot be named: {error}", file=sys.stderr)
        names = {}
    found = list(damaged(store))
    for path in found:
        digest = path.parent.name + path.name
        print(
            f"verify_cache: {names.get(digest, 'of another state')} is damaged in the cache "
            f"({digest}); {_remove(path)}",
            file=sys.stderr,
        )
    if found:
        sys.exit("verify_cache: `dvc pull --force` or `dvc repro` restores them")
    print(
        f"{sum(1 for _ in store.glob('[0-9a-f][0-9a-f]/*'))} files in {store}, all as their names "
        "say"
    )


if __name__ == "__main__":
    main()
