"""What the words of a caption are, in any script; docs/languages.md says what to set for which
language.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import polars as pl
import regex

from pipeline.clustering.english import FUNCTION_WORDS
from pipeline.clustering.params import Label
from pipeline.errors import InputError, require
from pipeline.words import MEAN_LETTERS

# A letter first, two characters at least. `regex` counts marks as parts of words, as Unicode does:
# to `re`, the vowel signs of Hindi, Thai and Arabic are gaps.
WORD = r"\b[^\W\d_][\w'-]+\b"
IDEOGRAPH = regex.compile(r"\p{Han}")  # a word by itself
# Between letters, other apostrophes and hyphens are spellings of these; a soft hyphen is none.
APOSTROPHE = regex.compile(r"(?<=\w)[’‘ʼʻ‛`´′＇](?=\w)")
HYPHEN = regex.compile(r"(?<=\w)[‐‑](?=\w)")
SOFT_HYPHEN = "\u00ad"
# What a language writes onto the word behind it, before an apostrophe: "l'eau" is "eau".
ELIDED = {
    "fr": "c d j jusqu l lorsqu m n puisqu qu quoiqu s t",
    "it": "all c coll d dall dell l m nell quell quest s sull t un v",
    "ca": "d l m n s t",
    "oc": "d l m n qu s t",
    "pt": "d",
    "ga": "b d m",
}
# What English writes onto the word before it, after an apostrophe: "it's" is a form of "it".
SHORT_FORMS = frozenset({"s", "re", "ve", "ll", "d", "m", "t"})
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
        return set(FUNCTION_WORDS)
    import stopwordsiso

    if language not in stopwordsiso.langs():
        raise InputError(
            f"parameter 'label.language' is '{language}', and there are no stop words for it; it "
            f"is null or one of {', '.join(sorted(stopwordsiso.langs()))}"
        )
    return {plain(word) for word in stopwordsiso.stopwords(language)}


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
    """In lower case and one spelling: NFC, "'" and "-" within words, no soft hyphens."""
    text = unicodedata.normalize("NFC", text.lower())
    if text.isascii() and "`" not in text:
        return text
    text = APOSTROPHE.sub("'", text.replace(SOFT_HYPHEN, ""))
    return HYPHEN.sub("-", text)


def splitter(settings: Label) -> Callable[[str], list[str]]:
    """Text → its words, as `plain` spells them, each without what its language elides before an
    apostrophe ("eau" of "l'eau").
    """
    split = (
        by_dictionary(settings.language)
        if settings.segmenter == "icu"
        else regex.compile(WORD).findall
    )
    elided = frozenset(ELIDED.get(settings.language or "", "").split())
    if not elided:
        return lambda text: split(plain(text))

    def whole(word: str) -> str:
        before, apostrophe, rest = word.partition("'")
        return rest if apostrophe and before in elided else word

    return lambda text: [word for w in split(plain(text)) if len(word := whole(w)) > 1]


@dataclass(frozen=True)
class StopWords:
    """What names nothing, as captions are split.

    Attributes:
        words: those that are taken out wherever they stand. phrases: first word → phrases of
        several words, taken out where they stand as a whole. short_forms: whether "it's" is a
        form of "it".
    """

    words: frozenset[str]
    phrases: dict[str, list[tuple[str, ...]]]
    short_forms: bool

    def without(self, words: list[str]) -> list[str]:
        """The words of a caption that are left."""
        left, place = [], 0
        while place < len(words):
            size = self._phrase_at(words, place)
            if not size and not self._is_stop(words[place]):
                left.append(words[place])
            place += size or 1
        return left

    def holds(self, phrase: Sequence[str]) -> bool:
        """Whether a phrase of words that were left is a stop phrase."""
        return tuple(phrase) in self.phrases.get(phrase[0], ())

    def _phrase_at(self, words: list[str], place: int) -> int:
        for phrase in self.phrases.get(words[place], ()):
            if tuple(words[place : place + len(phrase)]) == phrase:
                return len(phrase)
        return 0

    def _is_stop(self, word: str) -> bool:
        if word in self.words or not self.short_forms or "'" not in word:
            return word in self.words
        before, _, after = word.rpartition("'")
        negated = after == "t" and before.removesuffix("n") in self.words
        return negated or (after in SHORT_FORMS and before in self.words)


def stop_words_of(settings: Label, split: Callable[[str], list[str]]) -> StopWords:
    """The stop words of `label.language` and `label.stop_words`, split as captions are: one of
    several words is a phrase.

    Raises InputError as `stop_words` does.
    """
    listed = stop_words(settings.language)
    given = [tuple(split(entry)) for entry in (*sorted(listed), *settings.stop_words)]
    phrases: dict[str, list[tuple[str, ...]]] = {}
    for phrase in sorted({g for g in given if len(g) > 1}, key=lambda g: (-len(g), g)):
        phrases.setdefault(phrase[0], []).append(phrase)
    alone = frozenset(g[0] for g in given if len(g) == 1) | listed
    return StopWords(alone, phrases, settings.language == "en")


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
