"""Reads a backbone's weights: whole, of numbers that mean what they say, or not at all."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from pipeline.errors import InputError

NAME = "open_clip_model.safetensors"
# A buffer that older Hugging Face versions saved among the weights.
OUTDATED = {"text.transformer.embeddings.position_ids"}
SCALARS = {"logit_scale", "logit_bias"}  # as one number, or a list of one
FLOATS = {"F64", "F32", "F16", "BF16"}
# CLIP's 1/τ begins at 14 and is held below 100; SigLIP's begins at 10 and ends near 120.
SCALES = (2.0, 1000.0)


def _check(model: torch.nn.Module, weights: Path) -> None:
    """Raises InputError naming a tensor that lacks, is too many, or has another shape or kind of
    number than the model's.
    """
    expected = model.state_dict()
    try:
        with safe_open(weights, "pt") as file:
            slices = {k: file.get_slice(k) for k in file.keys()}
            found = {k: (tuple(v.get_shape()), v.get_dtype()) for k, v in slices.items()}
    except FileNotFoundError:
        raise InputError(
            f"{weights}: missing; put the backbone's weights there as safetensors, or change "
            "'backbone.path'"
        ) from None
    except SafetensorError as error:
        raise InputError(
            f"{weights}: not a complete safetensors file ({error}); obtain it again"
        ) from None
    for name, tensor in expected.items():
        if name not in found:
            raise InputError(
                f"{weights}: has no tensor '{name}', which open_clip_config.json beside it calls "
                "for; config and weights must belong together"
            )
        shape, dtype = found[name]
        one = name in SCALARS and math.prod(shape) == tensor.numel() == 1
        if shape != tuple(tensor.shape) and not one:
            raise InputError(
                f"{weights}: tensor '{name}' is {shape}, but open_clip_config.json beside "
                f"it calls for {tuple(tensor.shape)}; config and weights must belong together"
            )
        if tensor.is_floating_point() and dtype not in FLOATS:
            raise InputError(
                f"{weights}: tensor '{name}' holds numbers of the kind {dtype}, which mean "
                "something only with the scales that they were quantised by; save the weights as "
                "float32, float16 or bfloat16"
            )
    for name in found:
        if name not in expected and name not in OUTDATED:
            raise InputError(
                f"{weights}: tensor '{name}' has no place in the model of open_clip_config.json "
                "beside it; config and weights must belong together"
            )


def _check_numbers(tensors: dict[str, torch.Tensor], learned: set[str], weights: Path) -> None:
    """Raises InputError naming a tensor with numbers that are not finite, or a matrix of zeros."""
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise InputError(
                f"{weights}: tensor '{name}' holds numbers that are not finite; obtain it again"
            )
        if name in learned and tensor.ndim > 1 and not tensor.any():
            raise InputError(
                f"{weights}: tensor '{name}' holds nothing but zeros, as a copy does that was "
                "broken off; obtain it again"
            )


def _meant(stored: float) -> str:
    """What a `logit_scale` that cannot be meant was meant as, and what to store then."""
    low, high = SCALES
    if stored > math.log(high):
        return f"it looks like 1/τ itself: store its logarithm, {math.log(stored):.4f}"
    if 1 / high <= stored < 1 / low:
        return f"it looks like τ itself: store ln(1/τ), {-math.log(stored):.4f}"
    if math.log(low) <= -stored <= math.log(high):
        return f"it looks like ln τ: store ln(1/τ), {-stored:.4f}"
    return "obtain the weights again"


def _check_scale(stored: float, weights: Path) -> None:
    """Raises InputError if `stored` is not the logarithm of a 1/τ that a CLIP can have: with
    another, probabilities are infinite, or the same for every class.
    """
    low, high = SCALES
    if not math.log(low) <= stored <= math.log(high):
        raise InputError(
            f"{weights}: tensor 'logit_scale' is {stored:g}, and its exponential is 1/τ of the "
            f"softmax, which lies between {low:g} and {high:g} (CLIP's, 100, is stored as "
            f"{math.log(100):.4f}); {_meant(stored)}"
        )


def load_weights(model: Any, folder: Path) -> None:
    """Fills a model with the weights of a folder, in float32.

    Raises InputError naming the file and a tensor if they do not fit the model, are quantised, are
    not all finite, or hold a temperature that cannot be meant.
    """
    weights = folder / NAME
    _check(model, weights)
    expected = model.state_dict()
    with safe_open(weights, "pt") as file:
        tensors = {
            k: file.get_tensor(k).float().reshape(like.shape) for k, like in expected.items()
        }
    _check_numbers(tensors, {name for name, _ in model.named_parameters()}, weights)
    _check_scale(float(tensors["logit_scale"]), weights)
    model.load_state_dict(tensors)
