"""A learned start as others take it: tokens, regulator, what they were made from, and a card."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from pipeline.artifacts import read_json, replacing, write_json
from pipeline.clip.digest import backbone_digest
from pipeline.errors import InputError
from pipeline.prompts.starts import Start, load_start, save_start

FORMAT, VERSION = "gram-start", 1


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def config_of(
    start: Start, folder: Path, backbone: Path, tuning: dict[str, Any], provenance: dict[str, Any]
) -> dict[str, Any]:
    """What config.json says: the backbone by its digest, how to tune on, where it came from."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "prompt": start.prompt,
        "depth": start.depth,
        "tokens": {name: list(rows.shape) for name, rows in sorted(start.theta.items())},
        "regulator": "affine" if start.phi else "identity",
        "backbone": {"name": str(backbone), "sha256": backbone_digest(backbone)},
        "tuning": tuning,
        "provenance": provenance,
        "files": {
            name: _sha256(folder / name) for name in ("prompt.safetensors", "regulator.safetensors")
        },
    }


WORDS = {
    "base": "base classes of a benchmark, tuned on them",
    "new": "other classes of it",
    "H": "harmonic mean of the two",
    "cross_domain": "the same classes in other domains",
    "cross_dataset": "other datasets",
}


CARD = """---
license: unknown
tags: [clip, prompt-learning, meta-learning]
---

# {title}: a meta-learned start

Tokens of a `{prompt}` prompt (depth {depth}) and their gradient regulator, for
one backbone: `{backbone}` (SHA-256 `{digest}`…).
`gram adapt --start` takes this folder, and refuses another backbone: the tokens mean nothing to
other towers.

## Figures

Top-1 in percent after few-shot tuning, as in the report this was published with:

| | |
|---|---|
{rows}

## Tuning recipe

SGD, every gradient through the regulator: `{tuning}`

## Where it came from

```json
{provenance}
```

## Limits

It was learned from web captions and pictures as they were, with what they favour and leave out.
The figures are of the report's benchmarks; of other pictures they say little. Licence: that of the
backbone and of the captions' source; ask whoever made them.
"""


def card(title: str, config: dict[str, Any], figures: dict[str, float]) -> str:
    """A model card in Markdown."""
    rows = "\n".join(
        f"| {WORDS.get(name, name)} | {value:.1f} |" for name, value in figures.items()
    )
    provenance = json.dumps(config["provenance"], indent=2, ensure_ascii=False)
    tuning = json.dumps(config["tuning"], ensure_ascii=False)
    return CARD.format(
        title=title,
        prompt=config["prompt"],
        depth=config["depth"],
        backbone=config["backbone"]["name"],
        digest=config["backbone"]["sha256"][:16],
        rows=rows,
        tuning=tuning,
        provenance=provenance,
    )


def publish(
    source: Path,
    out: Path,
    backbone: Path,
    *,
    title: str,
    figures: Path,
    tuning: dict[str, Any],
    provenance: dict[str, Any],
) -> dict[str, Any]:
    """Writes prompt.safetensors, regulator.safetensors, config.json and README.md to `out`.

    Args:
        source: the start's folder. figures: JSON of the method's headline figures.

    Returns:
        The config. Raises InputError naming the file if the start or the figures are missing.
    """
    start = load_start(source)
    if not start.theta:
        raise InputError(f"{source}: holds no learned tokens; there is nothing to publish")
    told = read_json(figures)
    save_start(start, out)
    config = config_of(start, out, backbone, tuning, provenance)
    write_json(config, out / "config.json")
    with replacing(out / "README.md") as temporary:
        temporary.write_text(card(title, config, told), encoding="utf-8")
    return config
