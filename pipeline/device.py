"""Where PyTorch computes, what fits there, and whether its sums come out the same twice."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch
from torch import Tensor

from pipeline.errors import InputError
from pipeline.stage import workers


def device() -> torch.device:
    """DEVICE from the environment, otherwise CUDA if there is one (under `torchrun` each process
    its own).

    It is no parameter: the task is the same everywhere. DETERMINISTIC=1 has everything computed in
    ways that give the same bits twice (docs/speed.md has the price).

    Raises InputError if there is no such device.
    """
    asked = os.environ.get("DEVICE")
    name = asked or ("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    if (repeatable := os.environ.get("DETERMINISTIC") or "0") not in ("0", "1"):
        raise InputError(f"environment variable DETERMINISTIC is '{repeatable}'; it is 1, or 0")
    if repeatable == "1":
        _repeatable()
    try:
        found = torch.device(name)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError) as error:
        why = str(error).splitlines()[0]
        if asked:
            remedy = "name one that PyTorch has here, as cpu, cuda or cuda:1"
        else:
            remedy = "start as many processes as there are GPUs (torchrun --nproc-per-node)"
        raise InputError(f"there is no device '{name}' ({why}); {remedy}") from None
    return found


def _repeatable() -> None:
    """Fused attention sums backwards in an order of chance, so attention takes its plain form."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    for fused in ("flash", "mem_efficient", "cudnn"):
        getattr(torch.backends.cuda, f"enable_{fused}_sdp")(False)


def at_once(default: int) -> int:
    """Pictures that pass through a tower together: PICTURES_AT_ONCE from the environment, as it
    changes memory and speed, and results by rounding alone.
    """
    return workers("PICTURES_AT_ONCE", default)


# Pixels that pass through a vision tower together. A processor's thread is fastest while what a
# convolutional tower makes of them stays near its cache; a GPU needs many to be busy.
OF_A_THREAD, OF_A_GPU = 4 * 224**2, 256 * 224**2


def pictures_at_once(view: Tensor, target: torch.device, most: int) -> int:
    """How many views like this (3, h, w) one the device takes best, `most` at most;
    PICTURES_AT_ONCE is heeded.
    """
    fit = OF_A_THREAD * torch.get_num_threads() if target.type == "cpu" else OF_A_GPU
    return at_once(min(most, max(1, fit // (view.shape[-2] * view.shape[-1]))))


def decoders() -> ThreadPoolExecutor:
    """DECODE_THREADS (default: number of cores, 4 at most) threads that open and resize pictures;
    more wait for one another, since a part of it keeps the interpreter's lock.
    """
    return ThreadPoolExecutor(workers("DECODE_THREADS", min(4, os.cpu_count() or 1)))


FEWER_PICTURES = "set the environment variable PICTURES_AT_ONCE to fewer than {}"


@contextmanager
def within_memory(remedy: str) -> Iterator[None]:
    """What does not fit the device's memory becomes an InputError that says what helps."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        said = str(error)
        short = isinstance(error, (torch.OutOfMemoryError, MemoryError))
        if not short and "can't allocate memory" not in said:
            raise
        raise InputError(f"out of memory ({said.partition('. ')[0]}); {remedy}") from None


def waiting(tensor: Tensor, target: torch.device) -> Tensor:
    """The same on the processor, where a GPU can fetch it by itself: in pinned memory."""
    return tensor.pin_memory() if target.type == "cuda" else tensor


def sent(tensor: Tensor, target: torch.device) -> Tensor:
    """On the device; from pinned memory the copy runs beside what is computed there."""
    return tensor.to(target, non_blocking=target.type == "cuda" and tensor.is_pinned())
