"""What all stage scripts share: arguments, progress, one closing line, and honest exit codes."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, Callable, Iterable

from tqdm import tqdm

from pipeline.artifacts import write_json
from pipeline.errors import InputError


def parser(doc: str) -> argparse.ArgumentParser:
    """The stage's own docstring as help; `--params` and `--metrics` are common to all."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--params", type=Path, default=Path("params.yaml"), help="parameter file (default: %(default)s)")
    made.add_argument("--metrics", type=Path, help="where to write the stage's figures as JSON")
    return made


def progress(items: Iterable, label: str, total: int | None = None) -> tqdm:
    """A progress bar on a terminal, silence elsewhere."""
    return tqdm(items, desc=label, total=total, disable=None, leave=False, dynamic_ncols=True)


def warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr, flush=True)


def workers(variable: str) -> int:
    """How many work at once: an environment variable, as it changes no result; by default the number of cores."""
    return int(os.environ.get(variable, os.cpu_count() or 1))


def first_process() -> bool:
    """Of the processes that `torchrun` started, the one that writes and speaks; alone: True."""
    return os.environ.get("RANK", "0") == "0"


def _interrupt(number: int, _frame: Any) -> None:
    raise KeyboardInterrupt(signal.Signals(number).name)


def run(main: Callable[[], tuple[str, dict[str, Any], Path | None]]) -> None:
    """Runs a stage's `main` and ends the process.

    `main` returns (closing words, figures, where the figures go). Bad input prints one clear message
    and exits 1; an interruption exits 130, so that DVC never records a half-done stage.
    """
    signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _interrupt)
    started = time.perf_counter()
    name = Path(sys.argv[0]).stem
    try:
        words, figures, target = main()
        if target and first_process():
            write_json(figures, target)
    except InputError as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print(f"{name}: interrupted; finished parts are kept and the next run goes on from them", file=sys.stderr)
        sys.exit(130)
    if first_process():
        print(f"{name}: {words} ({time.perf_counter() - started:.1f} s)", flush=True)
