"""Which columns of a table are caption, URL and key, by their names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import InputError, shown

# Names that are taken for `caption` and `url` where these do not stand themselves, in any case:
# those of LAION (TEXT, URL), DataComp and COYO (text, url), RedCaps and SBU (image_url).
NAMES = {"caption": ("caption", "text"), "url": ("url", "image_url"), "key": ()}


def _folded(name: str) -> str:
    return name.strip().strip("\"'").casefold()


def is_header(fields: Sequence[str]) -> bool:
    """Whether a row holds names of columns instead of a caption and its URL."""
    found = {_folded(field) for field in fields if len(field) < 100}
    return not found.isdisjoint(NAMES["caption"]) and not found.isdisjoint(NAMES["url"])


def places(path: Path, columns: Sequence[str], remedy: str) -> dict[str, int]:
    """Where caption, URL and, if there is one, key stand among the columns.

    Raises InputError with the remedy for a column that is missing, and for one that stands twice.
    """
    at = {}
    for name, others in NAMES.items():
        exact = [place for place, column in enumerate(columns) if column == name]
        found = exact or [n for n, column in enumerate(columns) if _folded(column) in others]
        if len(found) > 1:
            called = " and ".join(f"'{shown(columns[place])}'" for place in found)
            raise InputError(
                f"{path}: column '{name}' stands {len(found)} times (columns {called}); leave one, "
                "or rename the others"
            )
        if found:
            at[name] = found[0]
    wanted = [name for name, others in NAMES.items() if others]
    if not at.keys() >= set(wanted):
        missing = next(name for name in wanted if name not in columns)
        raise InputError(
            f"{path}: no column '{missing}' among {shown(', '.join(columns), 300)}; {remedy}"
        )
    return at
