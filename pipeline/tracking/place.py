"""Where records and runs are kept: `tracking/` of the checkout that a person works in.

Experiments run in copies of the checkout that DVC deletes afterwards; what they leave goes to the
checkout that they were queued from.
"""

from __future__ import annotations

import os
from pathlib import Path

COPIES = (".dvc", "tmp", "exps")  # of a checkout; `dvc exp run --queue` and `--temp` work there


def home(here: Path | None = None) -> Path:
    """The checkout that `here` (by default what DVC runs in, or this file's) is, or is a copy
    of.
    """
    here = Path(here or os.environ.get("DVC_ROOT") or Path(__file__).parents[2]).resolve()
    for parent in here.parents:
        if parent.parts[-3:] == COPIES:
            return parent.parents[2]
    return here


def tracking_folder() -> Path:
    return home() / "tracking"


def outbox_of(store: Path) -> Path:
    """Where the runs of a tracking folder wait until they are sent."""
    return store / "outbox"
