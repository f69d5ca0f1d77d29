"""Are the installed libraries those that constraints.txt names? Warns in one line where not.

    python -m pipeline.versions

DVC knows the code and the inputs of a result, not the libraries: with others nothing becomes stale,
and results may differ.
"""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement

CONSTRAINTS = Path("constraints.txt")
SHOWN = 8


def differing(path: Path) -> list[str]:
    """`name installed (wanted)` of the packages that are installed in another version than a line
    of the file asks for. Lines for other Pythons or systems, and packages that are not installed,
    ask for nothing; `2.9.0+cpu` is a build of `2.9.0`.
    """
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        text = line.partition("#")[0].strip()
        if not text or text.startswith("-"):
            continue
        try:
            asked = Requirement(text)
            there = version(asked.name)
        except InvalidRequirement as error:
            found.append(f"line {number} cannot be read ({str(error).splitlines()[0]})")
            continue
        except PackageNotFoundError:
            continue
        if asked.marker and not asked.marker.evaluate():
            continue
        if not asked.specifier.contains(there, prereleases=True):
            found.append(f"{asked.name} {there} ({asked.specifier})")
    return found


def main() -> None:
    found = differing(CONSTRAINTS) if CONSTRAINTS.exists() else []
    if found:
        more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        print(
            f"warning: not as in {CONSTRAINTS}: {', '.join(found[:SHOWN])}{more}; results may "
            "differ from the committed ones and no stage is stale for it "
            f'(`pip install -c {CONSTRAINTS} -e ".[pipeline,test]"`)',
            file=sys.stderr,
        )


if __name__ == "__main__":
    main()
