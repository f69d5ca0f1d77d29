"""Checkpoints of meta-training, from which it goes on to the bit."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from pipeline.artifacts import replacing
from pipeline.gram.validation import Kept


def save_checkpoint(
    path: Path, kept: Kept, optimiser: torch.optim.Optimizer, step: int, curve: list[dict]
) -> None:
    """θ and φ as they are trained and as they are kept, the optimiser's state, the curve."""
    tensors = kept.leaves | {f"kept/{k}": v for k, v in kept.values.items()}
    for index, state in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser/{index}/{k}": v for k, v in state.items()}
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    with replacing(path) as temporary:
        about = {"step": step, "curve": curve, "count": kept.count, "figures": kept.figures}
        save_file(tensors, temporary, metadata={k: json.dumps(v) for k, v in about.items()})


def load_checkpoint(
    path: Path, kept: Kept, optimiser: torch.optim.Optimizer
) -> tuple[int, list[dict]]:
    """Fills θ, φ, what is kept of them and the optimiser in place; returns the number of steps
    done and the curve so far.
    """
    with safe_open(path, "pt") as file:
        metadata = {k: json.loads(v) for k, v in file.metadata().items()}
        state: dict[int, dict] = {}
        with torch.no_grad():
            for name in file.keys():
                kind, _, rest = name.partition("/")
                if kind == "optimiser":
                    index, _, field = rest.partition("/")
                    state.setdefault(int(index), {})[field] = file.get_tensor(name)
                elif kind == "kept":
                    kept.values[rest] = file.get_tensor(name).to(kept.leaves[rest].device)
                else:
                    kept.leaves[name].copy_(file.get_tensor(name))
    groups = optimiser.state_dict()["param_groups"]
    optimiser.load_state_dict({"state": state, "param_groups": groups})
    kept.count, kept.figures = metadata["count"], metadata["figures"]
    return metadata["step"], metadata["curve"]
