"""What tuning leaves: the tokens after every epoch, one safetensors file per run."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from pipeline.prompts.starts import load_tensors, save_tensors


def tuned_path(folder: Path, classes: str, shots: int, seed: int) -> Path:
    """The file of the run on so many shots of the base or all classes."""
    return folder / f"{classes}-{shots}-{seed}.safetensors"


def save_tuned(epochs: list[dict[str, Tensor]], path: Path, about: dict[str, str]) -> None:
    """{name: (rows, d)} after epoch 1, 2, …; `about` says which prompt method it is
    (`Start.about`).
    """
    save_tensors(
        {
            f"epoch-{epoch:03d}/{name}": v
            for epoch, tokens in enumerate(epochs, 1)
            for name, v in tokens.items()
        },
        path,
        **about,
    )


def load_tuned(path: Path) -> tuple[list[dict[str, Tensor]], dict[str, str]]:
    """The tokens after each epoch, and what `save_tuned` was told about them; InputError if the
    file is missing or incomplete.
    """
    tensors, about = load_tensors(path)
    epochs: dict[str, dict[str, Tensor]] = {}
    for name in sorted(tensors):
        epoch, _, learned = name.partition("/")
        epochs.setdefault(epoch, {})[learned] = tensors[name]
    return list(epochs.values()), about
