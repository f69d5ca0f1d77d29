"""Watches over the downloader: its end, a disk that fills up, and a standstill."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from pipeline.engine import ROOT
from pipeline.errors import InputError
from pipeline.owner import shared

LOOK_EVERY = 0.3  # seconds
LEAST_FREE = 100  # MB: what is under way when the disk is looked at must have room
PATIENCE = 60  # seconds beyond what a single picture may take
IDLE = 0.02  # of a core: less is no work, but threads that look whether there is any


def check_disk(folder: Path) -> None:
    """Raises InputError if next to nothing more can be written into a folder."""
    free = shutil.disk_usage(folder).free // 10**6
    if free < LEAST_FREE:
        raise InputError(
            f"{folder}: its disk has {free} MB left, less than the {LEAST_FREE} MB that are under "
            "way at a time; make room there and run the stage again: finished shards are kept"
        )


class Heartbeat:
    """Notices that processes do nothing any more: for `quiet` seconds no picture was done with,
    and (almost) no processor time was used.

    Args:
        pid: the first of the processes. beat: a file that is touched for every picture.
    """

    def __init__(self, pid: int, beat: Path, quiet: float):
        self.process, self.beat, self.quiet = psutil.Process(pid), beat, quiet
        self.since = self.last = self.used = 0.0
        self._again(time.time(), self._used())

    def _again(self, now: float, used: float) -> None:
        self.since, self.used = now, used
        self.last = self.beat.stat().st_mtime

    def _used(self) -> float:
        total = 0.0
        with suppress(psutil.Error):  # one has just ended
            for process in [self.process, *self.process.children(recursive=True)]:
                times = process.cpu_times()
                total += times.user + times.system
        return total

    def stopped(self) -> float | None:
        """For how many seconds nothing was done, if that is too long."""
        now = time.time()
        if self.beat.stat().st_mtime != self.last:
            self._again(now, self._used())
        elif (passed := now - self.since) > self.quiet:
            used = self._used()
            if abs(used - self.used) < IDLE * passed:
                return passed
            self._again(now, used)
        return None


def _end(child: subprocess.Popen) -> None:
    """Ends the process and whatever it started, which share its group."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def supervised(
    command: list[str],
    environment: dict[str, str],
    log: Path,
    beat: Path,
    quiet: float | None,
    look: Callable[[], object],
) -> int:
    """Runs a command in a process group of its own, of which nothing is left afterwards, and gives
    its exit code.

    Args:
        log: gets its output. beat, quiet: see `Heartbeat`; None: it may be still for ever.
        look: called every now and then, and once when it has ended.

    Raises:
        InputError if the log's disk is full or nothing happens any more.
    """
    beat.touch()
    with open(log, "ab") as output:
        child = subprocess.Popen(
            command,
            stdout=output,
            stderr=output,
            start_new_session=True,
            pass_fds=shared(),
            cwd=ROOT,
            env=environment,
        )
    try:
        heart = Heartbeat(child.pid, beat, quiet) if quiet else None
        while child.returncode is None:
            with suppress(subprocess.TimeoutExpired):
                child.wait(LOOK_EVERY)
            look()
            check_disk(log.parent)
            if heart and child.returncode is None and (passed := heart.stopped()):
                raise InputError(
                    f"the download stood still: in {passed:.0f} seconds no picture was done with "
                    "and no processor time was used; run the stage again: finished shards are "
                    f"kept ({log} may say more)"
                )
        look()
    finally:
        _end(child)
    return child.returncode
