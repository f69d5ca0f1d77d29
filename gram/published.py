"""A start as `publish` wrote it, or as meta-training left it."""

from __future__ import annotations

from pathlib import Path

from pipeline.artifacts import read_json
from pipeline.clip.backbone import Backbone
from pipeline.errors import InputError
from pipeline.prompts.starts import Start, load_start

TEXTUAL = "coop"  # a class matrix can be made of it once, for all pictures


def read_start(folder: Path, backbone: Backbone, digest: str) -> Start:
    """θ and φ of a folder; raises InputError if they are not for this backbone, or not of a kind
    whose prompt is the same for all pictures.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder; --start takes a published start")
    start = load_start(folder)
    if start.prompt != TEXTUAL or start.depth != 1:
        raise InputError(
            f"{folder}: is a start for '{start.prompt}' prompts of depth {start.depth}; only "
            f"'{TEXTUAL}' of depth 1 makes a classifier"
        )
    config = folder / "config.json"
    made_for = read_json(config).get("backbone", {}) if config.is_file() else {}
    if made_for and made_for.get("sha256") != digest:
        raise InputError(
            f"{folder}: was made for the backbone '{made_for.get('name')}' (SHA-256 "
            f"{str(made_for.get('sha256'))[:12]}…), not for this one ({digest[:12]}…): learned "
            "tokens mean nothing to another text tower; give the backbone that it names"
        )
    width = start.theta["text"].shape[1]
    if width != backbone.text.width:
        raise InputError(
            f"{folder}: its tokens are {width} wide, and this backbone's are "
            f"{backbone.text.width}; give the backbone that it was made for"
        )
    return start
