"""Visual domains: k-means on the image features of each topic."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import faiss
import numpy as np
from sklearn.metrics import silhouette_score
from sklearn.metrics.pairwise import cosine_distances

from pipeline.clustering.params import Domains
from pipeline.errors import InputError
from pipeline.stage import workers

JUDGED = 1000  # pictures of a topic that the silhouette is measured on


def cluster(features: np.ndarray, count: int, iterations: int, seed: int) -> np.ndarray:
    """(n,) k-means cluster of each of (n, e) normalised features, numbered by falling size;
    equal features may leave fewer than `count`.
    """
    kmeans = faiss.Kmeans(
        features.shape[1],
        count,
        niter=iterations,
        seed=seed,
        spherical=True,
        min_points_per_centroid=1,
        max_points_per_centroid=len(features),
    )
    kmeans.train(features)
    nearest = kmeans.index.search(features, 1)[1].ravel()
    found, sizes = np.unique(nearest, return_counts=True)
    order = {old: new for new, old in enumerate(found[np.argsort(-sizes, kind="stable")])}
    return np.array([order[d] for d in nearest], np.int32)


def split_topic(features: np.ndarray, settings: Domains, seed: int) -> np.ndarray:
    """(n,) domain of each of a topic's (n, e) normalised image features, numbered by falling size.

    A topic too small for U domains of the least size gets fewer; every domain has at least one
    picture. With `silhouette`, it is the number from 2 up to there whose mean silhouette (cosine
    distances, at most `JUDGED` pictures) is best, the smallest of equals; where no number parts the
    pictures, one domain.
    """
    most = max(1, min(settings.per_topic, len(features) // settings.min_size))
    if settings.choose == "fixed" or most < 2:
        return cluster(features, most, settings.iterations, seed)
    judged = np.random.default_rng(seed).permutation(len(features))[:JUDGED]
    distance = cosine_distances(features[judged])
    best, best_score = np.zeros(len(features), np.int32), -np.inf
    for count in range(2, most + 1):
        domain = cluster(features, count, settings.iterations, seed)
        if 2 <= len(np.unique(domain[judged])) < len(judged):
            score = silhouette_score(distance, domain[judged], metric="precomputed")
            if score > best_score:
                best, best_score = domain, score
    return best


def separation(features: np.ndarray, domain: np.ndarray) -> float:
    """Share of a topic's variance that lies between its domains (0: none, 1: all)."""
    total = ((features - features.mean(axis=0)) ** 2).sum()
    within = sum(
        ((features[domain == d] - features[domain == d].mean(axis=0)) ** 2).sum()
        for d in np.unique(domain)
    )
    return float(1 - within / total) if total > 0 else 0.0


def find_domains(
    features: np.ndarray, topic: np.ndarray, settings: Domains, seed: int, progress
) -> tuple[np.ndarray, dict]:
    """Splits every topic of (n, e) image features; a topic a thread is
    computed in float32.

    Returns:
        (n,) domain within the topic, −1 outside all topics; and counts.

    Raises:
        InputError if there is no topic.
    """
    if not (topic >= 0).any():
        raise InputError(
            "no pair lies in a topic, so there is nothing to split into domains; look why "
            "'topics' or 'label.edits' leave none"
        )
    domain = np.full(len(topic), -1, np.int32)
    explained, domains, small = [], 0, 0
    order = np.argsort(topic, kind="stable")
    topics = np.split(order, np.searchsorted(topic[order], range(int(topic.max()) + 1)))[1:]
    topics = [rows for rows in topics if len(rows)]

    def split(rows: np.ndarray) -> tuple[np.ndarray, float]:
        # of this thread: OpenMP's own would spend their time waiting for one another
        faiss.omp_set_num_threads(1)
        inside = features[rows].astype(np.float32)
        found = split_topic(inside, settings, seed)
        return found, separation(inside, found)

    with ThreadPoolExecutor(workers("OMP_NUM_THREADS")) as threads:
        found = progress(threads.map(split, topics), "domains", total=len(topics))
        for rows, (of_rows, share) in zip(topics, found, strict=True):
            domain[rows] = of_rows
            sizes = np.bincount(of_rows)
            domains += len(sizes)
            small += int((sizes < settings.min_size).sum())
            explained.append(share)
    return domain, {
        "domains": domains,
        "small_domains": small,
        "between_share": round(float(np.mean(explained)), 4),
    }
