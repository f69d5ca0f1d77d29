"""Puts this checkout first on the import path, instead of `stages/`, and says in one line what to
do if this Python cannot run it.

A script then runs the code beside it wherever it is started from, and in the copies of the checkout
that `dvc exp run --queue` works in. And what libraries would ask the world when they are imported,
or tell it, they do not: for their newest version, how they are used. Until the stage begins
(`pipeline.stage.run`), nothing is looked for that could be freed: of what is imported nothing can,
and the search is a quarter of the time that PyTorch and open_clip take.

Python's own modules alone are imported here, and nothing is written that an older Python could not
read.
"""

import gc
import os
import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LEAST = (3, 11)
# what every stage needs; an environment that has these was made for this repository
NEEDED = ("numpy", "polars", "pyarrow", "pydantic", "ruamel.yaml", "tqdm")


def missing(names):
    """The first of some packages that this Python does not have, or None."""
    for name in names:
        try:
            if find_spec(name) is None:
                return name
        except ModuleNotFoundError:  # of a package's part, where the package is missing
            return name
    return None


def problem(version, lacks):
    """What is wrong with a Python of this version that lacks a package (None: none), or None."""
    if version[:2] < LEAST:
        what = "is Python %d.%d, and %d.%d or later is needed" % (version[:2] + LEAST)  # noqa: UP031
    elif lacks:
        what = "has no package '%s'" % lacks  # noqa: UP031
    else:
        return None
    makes = (
        "" if (ROOT / ".venv").exists() else "`make check` once, which makes one that fits, then "
    )
    return "%s %s: %s`. .venv/bin/activate`, and this again" % (sys.executable, what, makes)  # noqa: UP031


if Path(sys.argv[0]).resolve().parent == ROOT / "stages":  # not where a test imports the script
    gc.disable()

for name, value in {
    "NO_ALBUMENTATIONS_UPDATE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
    "WANDB_MODE": "disabled",
    "DO_NOT_TRACK": "1",
}.items():
    os.environ.setdefault(name, value)

sys.path[0] = str(ROOT)
sys.path.append(str(ROOT / "stages"))  # last: a process that a stage starts imports its script anew
wrong = problem(tuple(sys.version_info), missing(NEEDED))
if wrong:
    sys.exit("%s: error: %s" % (Path(sys.argv[0]).stem, wrong))  # noqa: UP031
