"""Data-parallel meta-training under `torchrun`: every process takes its share of each batch of
tasks.
"""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from torch import Tensor


def join(device: torch.device) -> tuple[int, int]:
    """(rank, processes): (0, 1) unless `torchrun` started us. The device becomes the process's own,
    so that what names none lands there too.
    """
    if "RANK" not in os.environ:
        return 0, 1
    if device.index is not None and device.type != "cpu":
        torch.get_device_module(device).set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return dist.get_rank(), dist.get_world_size()


def rank() -> int:
    """Which of the processes this is; 0 alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def mean_over_processes(tensors: list[Tensor]) -> None:
    """Replaces each tensor (all of one type) by its mean over all processes. With shares of
    equal size that is the whole batch's mean.
    """
    if not dist.is_initialized() or not tensors:
        return
    flat = torch.cat([t.detach().flatten() for t in tensors])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


def wait() -> None:
    """Returns when every process has come here."""
    if dist.is_initialized():
        dist.barrier()
