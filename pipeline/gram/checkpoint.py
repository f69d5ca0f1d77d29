"""Checkpoints of meta-training, from which it goes on to the bit."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from pipeline.artifacts import replacing
from pipeline.gram.regulator import Phi
from pipeline.prompts.base import Tokens


def save_checkpoint(
    path: Path,
    theta: Tokens,
    phi: Phi,
    optimiser: torch.optim.Optimizer,
    step: int,
    curve: list[dict],
) -> None:
    tensors = {f"theta/{k}": v for k, v in theta.items()} | {f"phi/{k}": v for k, v in phi.items()}
    for index, state in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser/{index}/{k}": v for k, v in state.items()}
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={"step": str(step), "curve": json.dumps(curve)})


def load_checkpoint(
    path: Path, theta: Tokens, phi: Phi, optimiser: torch.optim.Optimizer
) -> tuple[int, list[dict]]:
    """Fills θ, φ and the optimiser in place; returns the number of steps done and the curve so
    far.
    """
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        state: dict[int, dict] = {}
        with torch.no_grad():
            for name in file.keys():
                kind, _, rest = name.partition("/")
                if kind == "optimiser":
                    index, _, field = rest.partition("/")
                    state.setdefault(int(index), {})[field] = file.get_tensor(name)
                else:
                    (theta if kind == "theta" else phi)[rest].copy_(file.get_tensor(name))
    groups = optimiser.state_dict()["param_groups"]
    optimiser.load_state_dict({"state": state, "param_groups": groups})
    return int(metadata["step"]), json.loads(metadata["curve"])
