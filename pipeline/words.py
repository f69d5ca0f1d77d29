"""How many words a caption has, in any script and without a dictionary."""

from __future__ import annotations

import polars as pl

# A piece between spaces that holds a letter or a digit: "&" and "-" are no words.
PIECE = r"\S*[\p{L}\p{N}]\S*"
# Letters that a word has on average, where scripts put no space between words. Vowel signs that are
# marks are no letters; a stretch of Katakana is one word.
MEAN_LETTERS = {
    r"\p{Han}": 1.7,
    r"\p{Hiragana}": 2.0,
    r"\p{Thai}\p{Lao}\p{Tai_Le}\p{New_Tai_Lue}\p{Tai_Viet}": 3.5,
    r"\p{Khmer}\p{Myanmar}\p{Tai_Tham}\p{Javanese}\p{Balinese}": 2.5,
}
KATAKANA = r"[\p{Katakana}ー]"
# a point stands between Tibetan syllables, which `label` takes for words
TIBETAN = r"[\p{Tibetan}&&[\p{L}\p{M}]]"
UNSPACED = rf"[{''.join(MEAN_LETTERS)}\p{{Katakana}}ー\p{{Tibetan}}]"


def number_of_words(captions: pl.Series) -> pl.Series:
    """(n,) how many words each of n captions has: pieces between spaces that hold a letter or a
    digit, and, of scripts that put no space between words, as many as their letters make on
    average, at least one.
    """
    counts = captions.str.count_matches(PIECE)
    unspaced = captions.str.contains(UNSPACED)
    if not unspaced.any():
        return counts
    rows = unspaced.arg_true()
    return counts.scatter(rows, _without_spaces(captions.gather(rows)))


def _without_spaces(captions: pl.Series) -> pl.Series:
    """`number_of_words` of captions that hold letters of such scripts."""
    text = pl.col("text")
    between = text.str.replace_all(rf"{UNSPACED}\p{{M}}*", " ").str.count_matches(PIECE)
    stretches = [text.str.count_matches(f"{script}+") for script in (KATAKANA, TIBETAN)]
    by_letters = [
        (letters / mean).round().clip(pl.min_horizontal(letters, 1))
        for script, mean in MEAN_LETTERS.items()
        for letters in [text.str.count_matches(rf"[[{script}]&&\p{{L}}]")]
    ]
    total = pl.sum_horizontal(between, *stretches, *by_letters).cast(pl.UInt32)
    return captions.to_frame("text").select(total).to_series()
