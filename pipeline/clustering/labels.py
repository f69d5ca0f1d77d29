"""Topic words by cluster-wise TF-IDF: Eq 3, or BERTopic's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from scipy import sparse
from sklearn.feature_extraction.text import CountVectorizer

from pipeline.clustering.params import Label
from pipeline.clustering.words import plain, splitter, stop_words_of
from pipeline.errors import InputError, shown


def cluster_tfidf(counts: sparse.csr_matrix, totals: np.ndarray) -> sparse.csr_matrix:
    """Eq 3: N_{w,l} / N_l · log(L / (L_w + 1)).

    Args:
        counts: (L, W) how often each word occurs in each cluster, N_{w,l}.
        totals: (L,) how many words each cluster has in all, N_l.

    Returns:
        (L, W) scores where the word occurs. They are negative for a word that all clusters contain
        and zero for one that all but one contain.
    """
    clusters = counts.shape[0]
    containing = np.asarray((counts > 0).sum(axis=0)).ravel()
    inverse = np.log(clusters / (containing + 1))
    return sparse.csr_matrix(
        sparse.diags(1 / np.maximum(totals, 1)) @ counts @ sparse.diags(inverse)
    )


def bertopic_tfidf(counts: sparse.csr_matrix) -> sparse.csr_matrix:
    """BERTopic's weighting: N_{w,l} / Σ_w N_{w,l} · log(1 + A / f_w).

    Args:
        counts: (L, W) how often each word occurs in each cluster. Only these words count: f_w is a
        word's
            sum over the clusters, A the clusters' mean sum, cut to a whole number as BERTopic does.

    Returns:
        (L, W) scores where the word occurs, all positive.
    """
    of_cluster = np.asarray(counts.sum(axis=1)).ravel()
    of_word = np.asarray(counts.sum(axis=0)).ravel()
    inverse = np.log(1 + int(of_cluster.mean()) / of_word)
    return sparse.csr_matrix(
        sparse.diags(1 / np.maximum(of_cluster, 1)) @ counts @ sparse.diags(inverse)
    )


@dataclass(frozen=True)
class Counted:
    """The words of n captions, counted once for any number of assignments to topics.

    Attributes:
        by_caption: (n, W) how often each candidate word occurs. words: (W,) the candidates: no stop
        words, no rare ones. lengths: (n,) all words of each caption.
    """

    by_caption: sparse.csr_matrix
    words: np.ndarray
    lengths: np.ndarray


def _analyser(settings: Label, lengths: list[int]) -> Callable[[str], list[str]]:
    """Caption → its words and phrases that may name a topic; the number of all its words is put
    at the end of `lengths`.

    Phrases leave stop words out ("dog snow" of "a dog in the snow"); those that pictures choose
    among stand in the caption as they are.
    """
    split, longest = splitter(settings), settings.longest_phrase
    stop = stop_words_of(settings, split)

    def analyse(caption: str) -> list[str]:
        words = split(caption)
        lengths.append(len(words))
        words = stop.without(words)
        phrases = [
            " ".join(phrase)
            for size in range(2, longest + 1)
            for start in range(len(words) - size + 1)
            if not stop.holds(phrase := words[start : start + size])
        ]
        if settings.choose == "pictures":
            text = " ".join(plain(caption).split())
            unspaced = text if settings.segmenter == "icu" else ""
            phrases = [p for p in phrases if p in text or p.replace(" ", "") in unspaced]
        return words + phrases

    return analyse


def _no_words(words: int, held: Counter[str], captions: int, settings: Label) -> str:
    """Why no word of so many can name a topic; held: in how many captions each candidate is."""
    if not words:
        return (
            f"none of {captions} captions holds a word (a letter first, two characters at least): "
            "they are numbers or signs; does 'source.table' have its captions in another column?"
        )
    if not held:
        return (
            f"all {words} words of {captions} captions are stop words; 'label.language' and "
            "'label.stop_words' say which those are"
        )
    (commonest, most), *_ = sorted(held.items(), key=lambda item: (-item[1], item[0]))
    return (
        f"no word stands in {settings.min_captions} of {captions} captions besides stop words "
        f"(the commonest, '{shown(commonest, 40)}', in {most}); lower 'label.min_captions'"
    )


def count_words(captions: Sequence[str], settings: Label) -> Counted:
    """Raises InputError if no word is frequent enough to count, saying whether there are any."""
    lengths: list[int] = []
    analyse = _analyser(settings, lengths)
    vectorizer = CountVectorizer(analyzer=analyse, min_df=settings.min_captions)
    try:
        by_caption = vectorizer.fit_transform(captions)
    except ValueError:
        words = sum(lengths)
        held = Counter(word for caption in captions for word in set(analyse(caption)))
        raise InputError(_no_words(words, held, len(captions), settings)) from None
    return Counted(by_caption, vectorizer.get_feature_names_out(), np.array(lengths))


def coherence(counted: Counted, words: Sequence[Sequence[str]]) -> float | None:
    """Mean over topics of the NPMI of their words, pair by pair (−1: never in one caption, 1: only
    together); None where no topic has two words.

    NPMI(v, w) = log(p(v, w) / (p(v) p(w))) / −log p(v, w), with p the share of captions that hold
    the words.
    """
    held = sparse.csc_matrix(counted.by_caption > 0, dtype=np.float64)
    place = {word: i for i, word in enumerate(counted.words)}
    means = []
    for of_topic in words:
        columns = held[:, [place[w] for w in of_topic if w in place]]
        both = (columns.T @ columns).toarray() / columns.shape[0]
        v, w = np.triu_indices(len(both), 1)
        if len(v):
            joint, apart = both[v, w], both[v, v] * both[w, w]
            with np.errstate(divide="ignore", invalid="ignore"):
                found = np.log(joint / apart) / -np.log(joint)
            means.append(np.where(joint == 0, -1, np.where(joint == 1, 1, found)).mean())
    return float(np.mean(means)) if means else None


def _positive(scores: sparse.csr_matrix, words: np.ndarray) -> pl.DataFrame:
    """topic, word (its number) and score of all scores above zero, best first; of equal scores, the
    phrase of more words, then by the alphabet, then by topic.
    """
    found = scores.tocoo()
    above = found.data > 0
    return (
        pl.DataFrame(
            {"topic": found.row[above], "word": found.col[above], "score": found.data[above]}
        )
        .with_columns(
            equal=pl.col("score").round(9),
            spaces=pl.Series(words, dtype=pl.String)
            .str.count_matches(" ")
            .gather(pl.Series(found.col[above])),
        )
        # words are numbered by the alphabet
        .sort("equal", "spaces", "word", "topic", descending=[True, True, False, False])
        .drop("equal", "spaces")
    )


def unique_names(ranked: pl.DataFrame, words: np.ndarray) -> dict[int, str]:
    """Topic → the first of its words that no topic before took."""
    names: dict[int, str] = {}
    taken: set[int] = set()
    for topic, word in ranked.select("topic", "word").iter_rows():
        if topic not in names and word not in taken:
            names[topic] = words[word]
            taken.add(word)
    return names


def topic_sizes(topic: np.ndarray) -> np.ndarray:
    """(L,) captions of every topic; (n,) topics, −1 outside."""
    return np.bincount(topic[topic >= 0], minlength=int(topic.max(initial=-1)) + 1)


def topic_sums(topic: np.ndarray, values: np.ndarray, topics: int) -> np.ndarray:
    """(topics,) the sums of (n,) values over the captions of each topic; −1 outside."""
    inside = topic >= 0
    return np.bincount(topic[inside], values[inside], topics)


def rank_words(counted: Counted, topic: np.ndarray, settings: Label) -> pl.DataFrame:
    """The words of every topic that score above zero: topic, word (its number) and score, best
    first; a phrase before its own parts where they score the same ("polar bear" before "polar").

    Args:
        topic: (n,) of the captions that were counted; −1 outside.

    Raises InputError for fewer than two topics: words are scored by what sets a topic apart from
    others.
    """
    clusters, inside = len(topic_sizes(topic)), np.flatnonzero(topic >= 0)
    if clusters < 2:
        raise InputError(
            f"there are {clusters} topics, and names tell two or more apart; lower "
            "'topics.min_cluster_size'"
        )
    member = sparse.csr_matrix(
        (np.ones(len(inside)), (topic[inside], inside)), shape=(clusters, len(topic))
    )
    counts, totals = sparse.csr_matrix(member @ counted.by_caption), member @ counted.lengths
    scores = cluster_tfidf(counts, totals) if settings.formula == "eq3" else bertopic_tfidf(counts)
    return _positive(scores, counted.words)


def describe_topics(
    counted: Counted,
    topic: np.ndarray,
    settings: Label,
    given: Sequence[str | None] | None = None,
) -> list[dict]:
    """Name, size and best words of every topic, in the order of the topics; `given` names stay as
    they are.

    Args:
        topic: (n,) of the captions that were counted; −1 outside.

    A name is used once: where two topics put the same word first, it goes to the topic that scores
    it higher and the other takes its next word. A topic that has no word with a score above zero,
    or none that is free, has no name (None): it can be no class.

    Raises InputError as `rank_words` does.
    """
    ranked, words = rank_words(counted, topic, settings), counted.words
    sizes = topic_sizes(topic).tolist()
    names = given or list(map(unique_names(ranked, words).get, range(len(sizes))))
    best = {
        row: (of_topic, their_scores)
        for row, of_topic, their_scores in ranked.group_by("topic", maintain_order=True)
        .agg(pl.col("word", "score").head(settings.words))
        .iter_rows()
    }
    return [
        {
            "topic": row,
            "name": names[row],
            "size": size,
            "words": [words[w] for w in best.get(row, ((), ()))[0]],
            "scores": list(best.get(row, ((), ()))[1]),
        }
        for row, size in enumerate(sizes)
    ]
