"""Where tuning starts: a method's tokens θ and regulator φ, as two safetensors files in one folder.

prompt.safetensors holds θ by name; its metadata says which prompt method of which depth, so that
whoever has the folder needs no parameter file. regulator.safetensors holds φ (nothing, for plain
gradients) and how its input is scaled. A method that learns nothing has no tensors in either.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pipeline.artifacts import replacing
from pipeline.clip.backbone import Backbone
from pipeline.errors import InputError
from pipeline.prompts import METHODS, PromptMethod

START_FILES = ("prompt.safetensors", "regulator.safetensors")


@dataclass(frozen=True)
class Start:
    """θ: {name: (rows, d)}; φ: see gram/regulator.py."""

    prompt: str
    depth: int
    theta: dict[str, Tensor]
    phi: dict[str, Tensor]
    input_scale: str

    @property
    def about(self) -> dict[str, str]:
        """What a file says of the method that its tokens belong to."""
        return {"prompt": self.prompt, "depth": str(self.depth)}


def save_tensors(tensors: dict[str, Tensor], path: Path, **metadata: str) -> None:
    """Tensors with `metadata` under one key: safetensors writes several in an order that changes
    from run to run.

    Raises InputError if a number is not finite.
    """
    _require_finite(tensors, path, "what it was learned with diverged: lower the learning rates")
    with replacing(path) as temporary:
        save_file(
            {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()},
            temporary,
            metadata={"about": json.dumps(metadata, sort_keys=True)},
        )


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata; InputError naming the file if it is missing or incomplete."""
    if not path.is_file():
        raise InputError(f"{path}: missing; `dvc repro` makes it")
    try:
        with safe_open(path, "pt") as file:
            tensors = {k: file.get_tensor(k) for k in file.keys()}
            about = json.loads((file.metadata() or {}).get("about", "{}"))
    except SafetensorError as error:
        raise InputError(
            f"{path}: not a complete safetensors file ({error}); delete it and run `dvc repro` "
            "again"
        ) from None
    _require_finite(tensors, path, "delete it and run `dvc repro` again")
    return tensors, about


def _require_finite(tensors: dict[str, Tensor], path: Path, remedy: str) -> None:
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise InputError(f"{path}: '{name}' holds numbers that are not finite; {remedy}")


def digest_of(folder: Path) -> str:
    """SHA-256 of a start's two files: what MLflow's model of it has as its tag `start`."""
    digest = hashlib.sha256()
    for name in ("prompt.safetensors", "regulator.safetensors"):
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()


def save_start(start: Start, folder: Path) -> None:
    save_tensors(start.theta, folder / "prompt.safetensors", **start.about)
    save_tensors(start.phi, folder / "regulator.safetensors", input_scale=start.input_scale)


def load_start(folder: Path) -> Start:
    theta, about_prompt = load_tensors(folder / "prompt.safetensors")
    phi, about_regulator = load_tensors(folder / "regulator.safetensors")
    if not {"prompt", "depth"} <= set(about_prompt) or "input_scale" not in about_regulator:
        raise InputError(
            f"{folder}: its files do not say which prompt method they belong to; delete it and "
            "run `dvc repro` again"
        )
    return Start(
        about_prompt["prompt"],
        int(about_prompt["depth"]),
        theta,
        phi,
        about_regulator["input_scale"],
    )


def method_of(about: dict[str, str], backbone: Backbone, template: str) -> PromptMethod:
    """The method that a file's metadata (`prompt`, `depth`) names, on a backbone and with a
    benchmark's template.
    """
    return METHODS[about["prompt"]](backbone, template, int(about["depth"]))
