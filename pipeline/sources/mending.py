"""Captions as they were meant: without double encoding, HTML's signs and what shows nothing."""

from __future__ import annotations

import html
import re
import unicodedata
from collections import Counter
from html.entities import html5

from ftfy import TextFixerConfig, fix_text

# The rest of what ftfy does (straight quotes, ligatures, narrow letters) changes how a caption is
# set, not what it says.
MENDED = TextFixerConfig(
    unescape_html=True,  # where tags stand in a caption, too
    uncurl_quotes=False,
    fix_latin_ligatures=False,
    fix_character_width=False,
    explain=False,
)
BLANK = frozenset("\u115f\u1160\u2800\u3164\uffa0")  # letters and symbols that show nothing
# White space that ftfy would take for control characters. Other white space may be the half of a
# letter that was encoded twice ("Ã\xa0" for "à"), so that ftfy sees it first.
ASCII_SPACE = str.maketrans(dict.fromkeys("\x0b\x0c\x1c\x1d\x1e\x1f", " "))
# Entities that HTML takes without a semicolon, where no letter follows ("R&notes", "&copy_this"),
# as in its attributes; capitals are likelier a name ("H&LT"). No word begins with "nbsp".
LEGACY = {name for name in html5 if not name.endswith(";") and not (name.isupper() and name[1:])}
OPEN = re.compile(
    rf"&(?:nbsp(?!;)|(?:{'|'.join(sorted(LEGACY | {'AMP'}, key=len, reverse=True))})(?![\w;=])"
    r"|#\d{2,7}(?![\d;])|#[xX][0-9a-fA-F]{2,6}(?![0-9a-fA-F;]))"
)


def _closed(reference: re.Match[str]) -> str:
    """What an entity without a semicolon stands for; itself where that cannot be seen."""
    letter = html.unescape(f"{reference.group()};")
    return letter if letter.isprintable() or letter.isspace() else reference.group()


def _fixed(caption: str) -> str:
    before = None
    while caption != before:
        before = caption
        caption = fix_text(OPEN.sub(_closed, caption) if "&" in caption else caption, MENDED)
    return caption


def mended(raw: str, counts: Counter) -> str:
    """The caption in one line, without double encoding ("cafÃ©") and HTML's signs ("&amp;"), as
    CLIP's tokenizer would take it; empty if nothing of it can be seen.
    """
    caption = " ".join(raw.split())
    if caption.isascii() and caption.isprintable() and "&" not in caption and raw.isascii():
        return caption  # next to all are: nothing to look for
    found = " ".join(_fixed(raw.translate(ASCII_SPACE)).split())
    counts["mended"] += found != caption
    return found if any(_is_seen(letter) for letter in found) else ""


def _is_seen(letter: str) -> bool:
    """Letters, digits, punctuation and symbols; no spaces, joiners and marks by themselves."""
    return unicodedata.category(letter)[0] in "LNPS" and letter not in BLANK
