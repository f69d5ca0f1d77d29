"""Work in a process of its own: while compiled code keeps the interpreter's lock for minutes, no
thread can tell how far a stage is, and no signal gets through.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from pipeline.errors import InputError

Result = TypeVar("Result")
PR_SET_PDEATHSIG = 1  # of Linux's prctl


def _begin(parent: int) -> None:
    """Nothing is left behind by a stage that is killed: the kernel sees to it, as a thread that
    watches could not run. Other systems than Linux let the work end first.
    """
    gc.enable()  # a stage's script rests it
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it was killed before this
            os._exit(1)


def apart(work: Callable[[], Result]) -> Result:
    """What `work` gives, a module's function or a `partial` of one, since it travels.

    Raises what `work` raises, and InputError if its process is killed.
    """
    others = multiprocessing.active_children()
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _begin, (os.getpid(),))
    try:
        return pool.submit(work).result()
    except BrokenProcessPool:
        raise InputError(
            "a process of this stage was killed, as the system does when memory runs out; end "
            "what else needs memory and run the stage again"
        ) from None
    finally:
        for process in multiprocessing.active_children():
            if process not in others:
                process.kill()
        pool.shutdown()
