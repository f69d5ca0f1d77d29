"""A start as `publish` wrote it, or as meta-training left it."""

from __future__ import annotations

from pathlib import Path

import torch

from pipeline.artifacts import read_json
from pipeline.clip.backbone import Backbone
from pipeline.errors import InputError, naming
from pipeline.prompts import METHODS
from pipeline.prompts.starts import Start, load_start, method_of

ROWS_OF_TOKENS = ("text", "image")  # as many as were learned; other tensors have one shape


def _check_backbone(folder: Path, digest: str) -> None:
    config = folder / "config.json"
    made_for = read_json(config).get("backbone", {}) if config.is_file() else {}
    if made_for and made_for.get("sha256") != digest:
        raise InputError(
            f"{folder}: was made for the backbone '{made_for.get('name')}' (SHA-256 "
            f"{str(made_for.get('sha256'))[:12]}…), not for this one ({digest[:12]}…): learned "
            "tokens mean nothing to other towers; give the backbone that it names"
        )


def _check_shapes(folder: Path, start: Start, backbone: Backbone) -> None:
    method = method_of(start.about, backbone, "{}")
    wanted = method.initial(2, torch.Generator().manual_seed(0))
    if set(wanted) != set(start.theta):
        raise InputError(
            f"{folder}: holds {', '.join(sorted(start.theta)) or 'nothing'}, and a "
            f"'{start.prompt}' prompt learns {', '.join(sorted(wanted))}; obtain the start again"
        )
    for name, like in wanted.items():
        rows = start.theta[name]
        if rows.shape[1] != like.shape[1]:
            raise InputError(
                f"{folder}: its '{name}' is {rows.shape[1]} wide, and this backbone's would be "
                f"{like.shape[1]}; give the backbone that it was made for"
            )
        many = len(rows) % start.depth if name in ROWS_OF_TOKENS else len(rows) - len(like)
        if many:
            raise InputError(
                f"{folder}: its '{name}' has {len(rows)} rows, which a '{start.prompt}' prompt of "
                f"depth {start.depth} cannot have on this backbone; give the one it was made for"
            )


def read_start(folder: Path, backbone: Backbone, digest: str) -> Start:
    """θ and φ of a folder.

    Raises InputError if they are not for this backbone, whose towers may not take them at all, or
    of a kind of prompt that is not known.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder; --start takes a published start")
    start = load_start(folder)
    if start.prompt not in METHODS:
        raise InputError(
            f"{folder}: is a start for '{start.prompt}' prompts, and known are "
            f"{', '.join(METHODS)}; install the gram that wrote it"
        )
    _check_backbone(folder, digest)
    with naming(str(folder)):
        method_of(start.about, backbone, "{}")
    _check_shapes(folder, start, backbone)
    return start
