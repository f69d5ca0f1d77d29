"""Puts this checkout first on the import path, instead of `stages/`.

A script then runs the code beside it wherever it is started from, and in the copies of the checkout
that `dvc exp run --queue` works in.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])
