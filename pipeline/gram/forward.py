"""Precision and memory of the forward passes, the same for training and validation."""

from __future__ import annotations

from contextlib import contextmanager

import torch

from pipeline.clip.blocks import recomputed_activations
from pipeline.gram.params import Outer


@contextmanager
def forward_settings(device: torch.device, outer: Outer):
    """As `outer` says."""
    with (
        torch.autocast(device.type, torch.bfloat16, enabled=outer.precision == "bf16"),
        recomputed_activations(outer.recompute),
    ):
        yield
