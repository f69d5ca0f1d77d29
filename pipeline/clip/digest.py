"""What a backbone is known by."""

from __future__ import annotations

import hashlib
from pathlib import Path

FILES = ("open_clip_config.json", "open_clip_model.safetensors", "bpe.txt.gz")


def backbone_digest(folder: Path | str) -> str:
    """SHA-256 over the files that make a backbone what it is, wherever the folder lies."""
    found = hashlib.sha256()
    for name in FILES:
        path = Path(folder) / name
        if path.is_file():
            with path.open("rb") as file:
                found.update(name.encode() + hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest()
