"""What the words of a caption are, in any script; docs/languages.md says what to set for which
language.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence

import polars as pl
import regex
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

from pipeline.clustering.params import Label
from pipeline.errors import InputError, require
from pipeline.words import MEAN_LETTERS

# A letter first, two characters at least. `regex` counts marks as parts of words, as Unicode does:
# to `re`, the vowel signs of Hindi, Thai and Arabic are gaps.
WORD = r"\b[^\W\d_][\w'-]+\b"
IDEOGRAPH = regex.compile(r"\p{Han}")  # a word by itself
BOUNDARY_OF_WORD = 100  # ICU's status of a piece that is neither space nor sign, and above

# of scripts that put no space between words, a stretch that is no single word
UNSPACED = rf"[{''.join(MEAN_LETTERS)}\p{{Katakana}}]{{4,}}"


def stop_words(language: str | None) -> set[str]:
    """The words of a language that name nothing; none for None.

    Raises InputError for a language that there is no list of.
    """
    if language is None:
        return set()
    if language == "en":
        return set(ENGLISH_STOP_WORDS)
    import stopwordsiso

    if language not in stopwordsiso.langs():
        raise InputError(
            f"parameter 'label.language' is '{language}', and there are no stop words for it; it "
            f"is null or one of {', '.join(sorted(stopwordsiso.langs()))}"
        )
    return {unicodedata.normalize("NFC", word) for word in stopwordsiso.stopwords(language)}


def by_dictionary(language: str | None) -> Callable[[str], list[str]]:
    """Splits text by ICU's rules and dictionaries: Chinese, Japanese, Thai, Lao, Khmer, Burmese.

    Raises InputError if ICU's Python package is not installed.
    """
    require("icu", "icu", "parameter 'label.segmenter' is 'icu' (docs/languages.md)")
    import icu

    breaks = icu.BreakIterator.createWordInstance(icu.Locale(language or "root"))
    begins = regex.compile(r"[^\W\d_]")

    def split(text: str) -> list[str]:
        units, found = icu.UnicodeString(text), []  # boundaries count UTF-16 units
        breaks.setText(units)
        start = breaks.first()
        for stop in breaks:
            if breaks.getRuleStatus() >= BOUNDARY_OF_WORD:
                piece = str(units[start:stop])
                if begins.match(piece) and (len(piece) > 1 or IDEOGRAPH.match(piece)):
                    found.append(piece)
            start = stop
        return found

    return split


def plain(text: str) -> str:
    """In lower case and one spelling (NFC)."""
    return unicodedata.normalize("NFC", text.lower())


def splitter(settings: Label) -> Callable[[str], list[str]]:
    """Text → its words, as `plain` spells them."""
    split = (
        by_dictionary(settings.language)
        if settings.segmenter == "icu"
        else regex.compile(WORD).findall
    )
    return lambda text: split(plain(text))


def what_to_set(captions: Sequence[str], settings: Label) -> list[str]:
    """What a person should know where captions are not in the language that is set: the share of
    them, and the parameter.
    """
    text = pl.Series(captions, dtype=pl.String)
    letters, latin = text.str.count_matches(r"\p{L}"), text.str.count_matches(r"\p{Latin}")
    found = []
    unspaced = text.str.contains(UNSPACED).mean() or 0
    if settings.segmenter == "spaces" and unspaced >= 0.01:
        found.append(
            f"{unspaced:.1%} of the captions are written without spaces between words, so whole "
            "sentences count as words; set 'label.segmenter' to icu (docs/languages.md)"
        )
    foreign = (2 * latin < letters).mean() or 0
    if settings.language == "en" and foreign >= 0.01:
        found.append(
            f"{foreign:.1%} of the captions are not in Latin letters, but are taken for English; "
            "set 'label.language' to theirs (docs/languages.md)"
        )
    return found
