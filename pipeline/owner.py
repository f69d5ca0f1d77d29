"""Whose a work folder is, and for how long: one process at a time, and none longer than the DVC
that started it.

Nothing here changes a result, so no stage is stale for it (`pipeline/code.py`).
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import psutil

from pipeline.errors import InputError

LOOK_EVERY = 0.5  # seconds
PATIENCE = 10.0  # seconds that a stage waits for another one that is about to end
GRACE = 20.0  # seconds that a stage has to end by itself once its DVC is gone

_held: set[int] = set()  # locks of this process, for the children that share its work


def _try(lock: Path) -> IO[str] | None:
    """The lock's file, locked; None if another process has it."""
    while True:
        file = lock.open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        except OSError as error:  # a file system without locks
            print(f"warning: {lock} cannot be locked ({error})", file=sys.stderr, flush=True)
            return file
        # whoever had it before may have removed it in between
        if lock.exists() and os.path.samestat(os.fstat(file.fileno()), lock.stat()):
            return file
        file.close()


def _holder(lock: Path) -> str:
    try:
        told = json.loads(lock.read_text(encoding="utf-8"))
        return (
            f"process {told['process']} on {told['host']} ({told['what']}, since {told['since']})"
        )
    except (OSError, ValueError, KeyError):
        return "another process"


@contextmanager
def owned(lock: Path, what: str) -> Iterator[None]:
    """While the block lasts, no other process has `lock`. The system takes it back when this
    process and the children that `shared` hands it to have ended, however they end.

    Raises InputError that says who has it, if they do not give it back within `PATIENCE` seconds.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + PATIENCE
    while (file := _try(lock)) is None:
        if time.monotonic() > deadline:
            raise InputError(
                f"{what}: {_holder(lock)} is at work on it; run this again when that has ended, or "
                "end it first"
            )
        time.sleep(LOOK_EVERY / 5)
    with file:
        file.truncate(0)
        about = {
            "process": os.getpid(),
            "host": socket.gethostname(),
            "what": " ".join([Path(sys.argv[0]).stem, *sys.argv[1:3]]),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        }
        file.write(json.dumps(about) + "\n")
        file.flush()
        _held.add(file.fileno())
        try:
            yield
            lock.unlink(missing_ok=True)
        finally:
            _held.discard(file.fileno())


def shared() -> tuple[int, ...]:
    """For `pass_fds` of a child that works in this process's folders: they stay its own until the
    child has ended too.
    """
    return tuple(_held)


def above() -> list[psutil.Process]:
    """The processes over this one, up to the DVC that runs it; none if DVC does not.

    DVC names the stage in the environment of what it starts and not in its own, so it is the first
    one above with another name or none. Shells and `torchrun` come before.
    """
    stage = os.environ.get("DVC_STAGE")
    found: list[psutil.Process] = []
    for process in psutil.Process().parents() if stage else []:
        found.append(process)
        try:
            if process.environ().get("DVC_STAGE") != stage:
                break
        except psutil.Error:  # another user's, or gone
            break
    return found


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _adopts(process: psutil.Process) -> bool:
    """Whether it is what orphans are given to: a user's systemd, or the first process of all or of
    a container, unless that is DVC itself.
    """
    try:
        words = set(re.findall("[a-z]+", Path(process.exe()).name))
    except psutil.Error:  # another user's
        words = set()
    return "systemd" in words or (process.pid == 1 and not {"python", "pypy", "dvc"} & words)


def _end() -> None:
    """Ends this process as an interruption does, or, if that takes long, with all its children."""
    print(f"{Path(sys.argv[0]).stem}: the dvc that ran it is gone", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            child.kill()
    os._exit(130)


def end_with_dvc() -> None:
    """From now on this process ends when the DVC that runs it, or anything between them, has ended:
    nobody would take what it makes, and it would work where the next run does.
    """
    chain = above()
    if not chain:
        return

    def watch() -> None:
        while not _adopts(chain[-1]) and all(map(_lives, chain)):
            time.sleep(LOOK_EVERY)
        _end()

    threading.Thread(target=watch, daemon=True, name="end with dvc").start()
