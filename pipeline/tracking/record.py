"""What a stage ran with, so that a figure can be traced back and made again: one JSON object per
run.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.tracking.place import tracking_folder

LIBRARIES = (
    "dvc",
    "torch",
    "torchvision",
    "open_clip_torch",
    "sentence-transformers",
    "umap-learn",
    "hdbscan",
    "faiss-cpu",
    "scikit-learn",
    "numpy",
    "scipy",
    "pyarrow",
    "polars",
    "img2dataset",
    "pillow",
)
# They change speed, or last bits of results, without being parameters.
SETTINGS = (
    "CUDA_VISIBLE_DEVICES",
    "DETERMINISTIC",
    "DEVICE",
    "ENGINE",
    "MKL_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "OMP_NUM_THREADS",
    "OPENBLAS_CORETYPE",
    "OPENBLAS_NUM_THREADS",
    "PICTURES_AT_ONCE",
    "WORLD_SIZE",
)
LOCK = ":(exclude)*dvc.lock"  # DVC itself writes it between stages


def _git(*words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *words],
            check=False,
            capture_output=True,
            text=True,
            timeout=10,
            cwd=os.environ.get("DVC_ROOT") or Path(__file__).parent,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.rstrip("\n") if done.returncode == 0 else None


@cache
def source() -> dict[str, Any]:
    """The revision, and which tracked files differ from it (an experiment's `-S` changes
    params.yaml).
    """
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ":/", LOCK)
    names = [line[3:] for line in (changed or "").splitlines()]
    return {
        "revision": _git("rev-parse", "HEAD"),
        "dirty": None if changed is None else bool(names),
        "changed": names,
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _accelerators() -> list[str]:
    """Those that this process could use; a stage that did not load torch used none."""
    torch = sys.modules.get("torch")
    return (
        [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        if torch and torch.cuda.is_available()
        else []
    )


def _version(library: str) -> str | None:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None


def stage_name() -> str:
    """As DVC calls it (`metatrain@coop_gram`), or the script's name if it was run by hand."""
    return os.environ.get("DVC_STAGE", "").removeprefix("dvc.yaml:") or Path(sys.argv[0]).stem


def experiment() -> dict[str, str | None]:
    """What DVC says of the experiment: its name and the commit that it started from; null
    outside one.
    """
    return {
        "experiment": os.environ.get("DVC_EXP_NAME") or None,
        "baseline": os.environ.get("DVC_EXP_BASELINE_REV") or None,
    }


def ran_with(parameters: dict[str, Any]) -> dict[str, Any]:
    """The record of this process, without how it ended."""
    return {
        "stage": stage_name(),
        **experiment(),
        **source(),
        "command": sys.argv,
        "parameters": parameters,
        "seed": parameters.get("seed"),
        "python": platform.python_version(),
        "libraries": {name: version for name in LIBRARIES if (version := _version(name))},
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "accelerators": _accelerators(),
        "settings": {name: os.environ[name] for name in SETTINGS if name in os.environ},
    }


def append(record: dict[str, Any], started: float, status: str, seconds: float) -> None:
    """Adds a line to `tracking/records.jsonl`; one write each, so that stages of several
    experiments do not mix.
    """
    entry = {
        "started": datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 2),
        "status": status,
        **record,
    }
    folder = tracking_folder()
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / "records.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(handle, (json.dumps(entry, ensure_ascii=False) + "\n").encode())
    finally:
        os.close(handle)
