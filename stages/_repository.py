"""Puts this checkout first on the import path, instead of `stages/`.

A script then runs the code beside it wherever it is started from, and in the copies of the checkout
that `dvc exp run --queue` works in. And what libraries would ask the world when they are imported,
or tell it, they do not: for their newest version, how they are used.
"""

import os
import sys
from pathlib import Path

for name, value in {
    "NO_ALBUMENTATIONS_UPDATE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
    "WANDB_MODE": "disabled",
    "DO_NOT_TRACK": "1",
}.items():
    os.environ.setdefault(name, value)

sys.path[0] = str(Path(__file__).resolve().parents[1])
