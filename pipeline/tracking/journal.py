"""The stage's side of tracking: it notes what happens in files, and somebody else tells MLflow
(`send.py`).

A stage never speaks to a server, so that none can stop it or slow it down. What could not be sent
stays in `tracking/outbox/` and goes out with the next run.
"""

from __future__ import annotations

import fcntl
import functools
import json
import math
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.artifacts import write_json
from pipeline.params import read_so_far
from pipeline.tracking import record
from pipeline.tracking.place import home, outbox_of, tracking_folder

FINISHED, FAILED, STOPPED = "FINISHED", "FAILED", "KILLED"  # MLflow's words
# in the outbox: why the last sending failed, and whether a person was told
PROBLEM = "problem.json"


class Run:
    """One run of a stage in the outbox.

    run.json says what it is, parameters.json what it read, points.jsonl grows with the curves,
    files/ and model/ hold what is kept, and end.json comes last: how it ended and its figures.
    """

    def __init__(self, started: float) -> None:
        self.folder = (
            outbox_of(tracking_folder())
            / f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime(started))}-{os.getpid()}"
        )
        (self.folder / "files").mkdir(parents=True)
        about = {"name": record.stage_name(), **record.experiment(), **record.source()}
        write_json(
            {
                "id": uuid.uuid4().hex,  # by which a run whose answer was lost is found again
                "uri": tracking_uri(),
                "started": started,
                "process": os.getpid(),
                **about,
            },
            self.folder / "run.json",
        )
        # a line at a time
        self.points = (self.folder / "points.jsonl").open("a", encoding="utf-8", buffering=1)
        self.told = False  # which parameters it has; known once the stage has read them

    def point(self, step: int, **values: float | None) -> None:
        """Adds to the curves; what was not measured (None), or is no number, has no point."""
        self._parameters()
        values = {
            name: value
            for name, value in values.items()
            if value is not None and math.isfinite(value)
        }
        self.points.write(json.dumps({"step": step, "time": time.time(), "values": values}) + "\n")

    def _parameters(self) -> None:
        if not self.told:
            write_json(read_so_far(), self.folder / "parameters.json")
            self.told = True

    def end(self, status: str, figures: dict[str, Any], ran_with: dict[str, Any]) -> None:
        self._parameters()
        self.points.close()
        write_json(ran_with, self.folder / "files" / "record.json")
        write_json(
            {"status": status, "ended": time.time(), "figures": figures}, self.folder / "end.json"
        )


_run: Run | None = None  # of this process: a process is one stage


def _harmless(act: Callable) -> Callable:
    """A full disk or a folder that cannot be written costs the run in MLflow, never the stage:
    one warning, and silence.
    """

    @functools.wraps(act)
    def guarded(*args, **kwargs):
        global _run
        try:
            return act(*args, **kwargs)
        except OSError as error:
            _run = None
            print(f"warning: this run is not tracked ({error})", file=sys.stderr, flush=True)

    return guarded


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, or the database in `tracking/`."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{tracking_folder() / 'mlflow.db'}"


def wanted() -> bool:
    """What DVC runs is tracked; by hand, a stage is if it is told where to."""
    return bool(os.environ.get("DVC_STAGE") or os.environ.get("MLFLOW_TRACKING_URI"))


@contextmanager
def alone(outbox: Path) -> Iterator[bool]:
    """Whether no other process sends from this outbox; if so, none will while the block lasts."""
    with (outbox / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


@_harmless
def begin(started: float) -> None:
    """From here on this process is a run, and a sender is there for it."""
    global _run
    _run = Run(started)
    with alone(_run.folder.parent) as nobody_sends:
        pass
    if not nobody_sends:
        return
    code = (
        home()
        if (home() / "pipeline" / "tracking" / "send.py").is_file()
        else Path(__file__).parents[2]
    )
    with (tracking_folder() / "sender.log").open("a") as log:
        # Of a session of its own: it goes on when the stage ends, and an interruption of the stage
        # is none of its own.
        subprocess.Popen(
            [sys.executable, "-m", "pipeline.tracking.send", str(tracking_folder())],
            cwd=code,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


@_harmless
def point(step: int, **values: float | None) -> None:
    """A point of the curves of this run, if it is tracked."""
    if _run:
        _run.point(step, **values)


@_harmless
def keep(files: Iterable[Path]) -> None:
    """Files that go along with this run, if it is tracked."""
    if _run:
        for path in files:
            shutil.copy2(path, _run.folder / "files")


@_harmless
def model(
    script: Path,
    signature: dict[str, Any],
    folders: dict[str, Path],
    packages: list[str],
    tags: dict[str, str],
) -> None:
    """A model that goes along with this run, if it is tracked.

    Args:
        script: defines it for MLflow, as code, not as a pickle. signature: of its inputs, outputs
        and parameters, as `mlflow.models.ModelSignature.from_dict` reads it. folders: what it
        loads, by the name that the script knows it by. packages: what has to be installed where it
        is used. tags: what it can be found by.
    """
    if _run:
        at, root = _run.folder / "model", Path(__file__).parents[2]
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(root / "pipeline", at / "code" / "pipeline", ignore=ignored)
        for name, folder in folders.items():
            shutil.copytree(folder, at / "artifacts" / name, ignore=ignored)
        write_json(
            {
                "script": script.resolve().relative_to(root).as_posix(),
                "signature": signature,
                "folders": list(folders),
                "packages": packages,
                "tags": tags,
            },
            at / "model.json",
        )


@_harmless
def end(status: str, figures: dict[str, Any], ran_with: dict[str, Any]) -> None:
    global _run
    if _run:
        _run.end(status, figures, ran_with)
        _run = None


@_harmless
def untold_problem() -> str | None:
    """Why runs could not be sent, the first time that it is asked since sending failed."""
    path = outbox_of(tracking_folder()) / PROBLEM
    try:
        problem = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    if problem["told"]:
        return None
    write_json({**problem, "told": True}, path)
    return (
        f"runs cannot be sent to {problem['uri']} ({problem['reason']}); they wait in "
        f"{path.parent} and go out when it is there again"
    )
