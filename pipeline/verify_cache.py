"""Are the files in DVC's cache what their names say? Damaged ones are removed, so that DVC restores
them.

    python -m pipeline.verify_cache

DVC hashes a file when it comes and trusts it from then on: a bit that flips on a disk later would
be used, and pushed.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from pipeline.errors import InputError
from pipeline.params import read_yaml


def damaged(store: Path) -> Iterator[Path]:
    """The files of a DVC store of MD5 names whose content has another hash."""
    for path in sorted(store.glob("[0-9a-f][0-9a-f]/*")):
        if path.is_file() and not path.name.endswith(".tmp"):
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "md5").hexdigest()
            if digest != path.parent.name + path.name.removesuffix(".dir"):
                yield path


def names_of(store: Path, lock: Path) -> dict[str, str]:
    """Hash → path of the outputs in dvc.lock, and of the files in those that are folders."""
    names = {}
    for stage in read_yaml(lock).get("stages", {}).values():
        for out in stage.get("outs", []):
            names[out["md5"]] = out["path"]
            listing = store / out["md5"][:2] / out["md5"][2:]
            if out["md5"].endswith(".dir") and listing.is_file():
                with suppress(json.JSONDecodeError):  # a damaged listing is named as such
                    names |= {
                        entry["md5"]: f"{out['path']}/{entry['relpath']}"
                        for entry in json.loads(listing.read_text())
                    }
    return names


def main() -> None:
    done = subprocess.run(["dvc", "cache", "dir"], check=False, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"verify_cache: error: {done.stderr.strip()}")
    store = Path(done.stdout.strip()) / "files" / "md5"
    try:
        names = names_of(store, Path("dvc.lock"))
    except InputError as error:
        sys.exit(f"verify_cache: error: {error}")
    found = list(damaged(store))
    for path in found:
        digest = path.parent.name + path.name
        print(
            f"verify_cache: {names.get(digest, 'of another state')} is damaged in the cache "
            f"({digest}); removed",
            file=sys.stderr,
        )
        path.chmod(0o644)
        path.unlink()
    if found:
        sys.exit("verify_cache: `dvc pull --force` or `dvc repro` restores them")
    print(
        f"{sum(1 for _ in store.glob('[0-9a-f][0-9a-f]/*'))} files in {store}, all as their names "
        "say"
    )


if __name__ == "__main__":
    main()
