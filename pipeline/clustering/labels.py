"""Topic words by cluster-wise TF-IDF: Eq 3, or BERTopic's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, CountVectorizer

from pipeline.clustering.params import Label
from pipeline.errors import InputError

WORD = r"(?u)\b[^\W\d_][\w'-]+\b"  # a letter first, two characters at least


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


def count_words(captions: Sequence[str], settings: Label) -> Counted:
    """Raises InputError if no word is frequent enough to count."""
    vectorizer = CountVectorizer(
        token_pattern=WORD,
        ngram_range=(1, settings.longest_phrase),
        min_df=settings.min_captions,
        stop_words=sorted(ENGLISH_STOP_WORDS | set(settings.stop_words)),
    )
    try:
        by_caption = vectorizer.fit_transform(captions)
    except ValueError:
        raise InputError(
            f"no word stands in {settings.min_captions} of {len(captions)} captions besides stop "
            "words; lower 'label.min_captions'"
        ) from None
    analyse = CountVectorizer(token_pattern=WORD).build_analyzer()
    return Counted(
        by_caption,
        vectorizer.get_feature_names_out(),
        np.array([len(analyse(c)) for c in captions]),
    )


def coherence(counted: Counted, words: Sequence[Sequence[str]]) -> float:
    """Mean over topics of the NPMI of their words, pair by pair (−1: never in one caption, 1: only
    together).

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
    return float(np.mean(means)) if means else float("nan")


def describe_topics(
    counted: Counted, topic: np.ndarray, settings: Label, given: Sequence[str] | None = None
) -> list[dict]:
    """Name, size and best words of every topic, in the order of the topics; `given` names stay as
    they are.

    Args:
        topic: (n,) of the captions that were counted; −1 outside.

    A name is used once: where two topics put the same word first, it goes to the topic that scores
    it higher and the other takes its next word. A phrase beats its own parts when they score the
    same ("polar bear" before "polar"). A topic whose words are all taken is named after its best
    word and number.

    Raises InputError for fewer than two topics: words are scored by what sets a topic apart from
    others.
    """
    clusters, inside, words = (
        int(topic.max(initial=-1)) + 1,
        np.flatnonzero(topic >= 0),
        counted.words,
    )
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
    ranked: list[list[tuple[str, float]]] = []
    for row in range(scores.shape[0]):
        start, stop = scores.indptr[row], scores.indptr[row + 1]
        found = [
            (words[j], float(s))
            for j, s in zip(scores.indices[start:stop], scores.data[start:stop], strict=True)
            if s > 0
        ]
        ranked.append(sorted(found, key=lambda f: (-round(f[1], 9), -f[0].count(" "), f[0])))
    names: dict[int, str] = {}
    claims = sorted(
        ((score, row, word) for row, found in enumerate(ranked) for word, score in found),
        key=lambda c: (-round(c[0], 9), -c[2].count(" "), c[2], c[1]),
    )
    taken: set[str] = set()
    for _, row, word in claims:
        if row not in names and word not in taken:
            names[row] = word
            taken.add(word)
    described = []
    for row, found in enumerate(ranked):
        best = found[: settings.words] or [("topic", 0.0)]
        name = given[row] if given else names.get(row, f"{best[0][0]} {row}")
        described.append(
            {
                "topic": row,
                "name": name,
                "size": int((topic == row).sum()),
                "words": [w for w, _ in best],
                "scores": [s for _, s in best],
            }
        )
    return described
