"""Topic words by cluster-wise TF-IDF: Eq 3, or BERTopic's."""

from __future__ import annotations

from typing import Sequence

import numpy as np
from scipy import sparse
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, CountVectorizer

from pipeline.clustering.params import Label

WORD = r"(?u)\b[^\W\d_][\w'-]+\b"  # a letter first, two characters at least


def cluster_tfidf(counts: sparse.csr_matrix, totals: np.ndarray) -> sparse.csr_matrix:
    """Eq 3: N_{w,l} / N_l · log(L / (L_w + 1)).

    Args:
        counts: (L, W) how often each word occurs in each cluster, N_{w,l}.
        totals: (L,) how many words each cluster has in all, N_l.

    Returns:
        (L, W) scores where the word occurs. They are negative for a word that all clusters contain and
        zero for one that all but one contain.
    """
    clusters = counts.shape[0]
    containing = np.asarray((counts > 0).sum(axis=0)).ravel()
    inverse = np.log(clusters / (containing + 1))
    return sparse.csr_matrix(sparse.diags(1 / np.maximum(totals, 1)) @ counts @ sparse.diags(inverse))


def bertopic_tfidf(counts: sparse.csr_matrix) -> sparse.csr_matrix:
    """BERTopic's weighting: N_{w,l} / Σ_w N_{w,l} · log(1 + A / f_w).

    Args:
        counts: (L, W) how often each word occurs in each cluster. Only these words count: f_w is a word's
            sum over the clusters, A the clusters' mean sum, cut to a whole number as BERTopic does.

    Returns:
        (L, W) scores where the word occurs, all positive.
    """
    of_cluster = np.asarray(counts.sum(axis=1)).ravel()
    of_word = np.asarray(counts.sum(axis=0)).ravel()
    inverse = np.log(1 + int(of_cluster.mean()) / of_word)
    return sparse.csr_matrix(sparse.diags(1 / np.maximum(of_cluster, 1)) @ counts @ sparse.diags(inverse))


def count_words(captions: Sequence[str], topic: np.ndarray, settings: Label) -> tuple[sparse.csr_matrix, np.ndarray, np.ndarray]:
    """(L, W) counts, (L,) all words of each topic, (W,) the words. Stop words and rare words are no candidates."""
    vectorizer = CountVectorizer(
        token_pattern=WORD, ngram_range=(1, settings.longest_phrase), min_df=settings.min_captions,
        stop_words=sorted(ENGLISH_STOP_WORDS | set(settings.stop_words)),
    )
    by_caption = vectorizer.fit_transform(captions)
    clusters = int(topic.max()) + 1
    inside = np.flatnonzero(topic >= 0)
    member = sparse.csr_matrix((np.ones(len(inside)), (topic[inside], inside)), shape=(clusters, len(captions)))
    analyse = CountVectorizer(token_pattern=WORD).build_analyzer()
    lengths = np.array([len(analyse(c)) for c in captions])
    return sparse.csr_matrix(member @ by_caption), member @ lengths, vectorizer.get_feature_names_out()


def describe_topics(captions: Sequence[str], topic: np.ndarray, settings: Label, given: Sequence[str] | None = None) -> list[dict]:
    """Name, size and best words of every topic, in the order of the topics; `given` names stay as they are.

    A name is used once: where two topics put the same word first, it goes to the topic that scores it
    higher and the other takes its next word. A phrase beats its own parts when they score the same
    ("polar bear" before "polar"). A topic whose words are all taken is named after its best word and number.
    """
    counts, totals, words = count_words(captions, topic, settings)
    scores = cluster_tfidf(counts, totals) if settings.formula == "eq3" else bertopic_tfidf(counts)
    ranked: list[list[tuple[str, float]]] = []
    for row in range(scores.shape[0]):
        start, stop = scores.indptr[row], scores.indptr[row + 1]
        found = [(words[j], float(s)) for j, s in zip(scores.indices[start:stop], scores.data[start:stop]) if s > 0]
        ranked.append(sorted(found, key=lambda f: (-round(f[1], 9), -f[0].count(" "), f[0])))
    names: dict[int, str] = {}
    claims = sorted(((score, row, word) for row, found in enumerate(ranked) for word, score in found), key=lambda c: (-round(c[0], 9), -c[2].count(" "), c[2], c[1]))
    taken: set[str] = set()
    for _, row, word in claims:
        if row not in names and word not in taken:
            names[row] = word
            taken.add(word)
    described = []
    for row, found in enumerate(ranked):
        best = found[: settings.words] or [("topic", 0.0)]
        name = given[row] if given else names.get(row, f"{best[0][0]} {row}")
        described.append({
            "topic": row, "name": name, "size": int((topic == row).sum()),
            "words": [w for w, _ in best], "scores": [s for _, s in best],
        })
    return described
