"""Alt text as people write it: some terse, some chatty, some with the style, some with the
site's name.
"""

from __future__ import annotations

import numpy as np

Rng = np.random.Generator

STYLE_WORDS: dict[str, tuple[str, ...]] = {
    "flat": ("icon", "clip art", "flat illustration", "sticker", "vector"),
    "sketch": ("pencil sketch", "line drawing", "ink drawing", "outline", "colouring page"),
    "blueprint": ("blueprint", "technical drawing", "blueprint plan"),
    "night": ("night scene", "picture at night", "dark night view"),
    "pixelated": ("pixel art", "8-bit sprite", "retro game sprite"),
    "textured": ("poster", "scrapbook picture", "wrapping paper print", "wallpaper"),
    "neon": ("neon sign", "glowing neon light", "neon tube"),
    "sepia": ("old photo", "vintage photograph", "faded sepia photo"),
}
PLAIN = (
    "{a}",
    "{a}",
    "a photo of {a}",
    "a picture of {a}",
    "an image of {a}",
    "{name}",
    "the {name}",
    "my {name}",
    "this is {a}",
)
STYLED = (
    "{style} of {a}",
    "a {style} of {a}",
    "{name} {style}",
    "{name}, {style}",
    "a {style} showing {a}",
    "{a} in a {style}",
)
ADJECTIVES = (
    "cute",
    "small",
    "big",
    "lovely",
    "simple",
    "funny",
    "beautiful",
    "nice",
    "classic",
    "colourful",
)
TAILS = (
    "",
    "",
    "",
    "",
    " stock image",
    " free download",
    " for kids",
    " isolated",
    ", close up",
    " design",
    " for print",
    " - image 4",
)


def with_article(name: str) -> str:
    """'a lion', 'an owl', and no article for plurals ('grapes') and pairs ('jeans')."""
    if name.endswith("s") and not name.endswith(("ss", "us", "as", "is")):
        return name
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def alt_text(name: str, style: str, rng: Rng) -> str:
    """One caption of a picture of `name` drawn in `style`; about half of them mention the style."""
    if rng.random() < 0.3:
        adjective = ADJECTIVES[rng.integers(len(ADJECTIVES))]
        a, name = with_article(f"{adjective} {name}"), f"{adjective} {name}"
    else:
        a = with_article(name)
    patterns = STYLED if rng.random() < 0.5 else PLAIN
    words = STYLE_WORDS[style]
    text = patterns[rng.integers(len(patterns))].format(
        a=a, name=name, style=words[rng.integers(len(words))]
    )
    return text + TAILS[rng.integers(len(TAILS))]
