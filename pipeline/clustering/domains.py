"""Visual domains: k-means on the image features of each topic."""

from __future__ import annotations

import faiss
import numpy as np

from pipeline.clustering.params import Domains


def split_topic(features: np.ndarray, settings: Domains, seed: int) -> np.ndarray:
    """(n,) domain of each of a topic's (n, e) normalised image features, numbered by falling size.

    A topic too small for U domains of the least size gets fewer; every domain has at least one picture.
    """
    count = max(1, min(settings.per_topic, len(features) // settings.min_size))
    kmeans = faiss.Kmeans(features.shape[1], count, niter=settings.iterations, seed=seed, spherical=True, min_points_per_centroid=1, max_points_per_centroid=len(features))
    kmeans.train(features)
    nearest = kmeans.index.search(features, 1)[1].ravel()
    found, sizes = np.unique(nearest, return_counts=True)
    order = {old: new for new, old in enumerate(found[np.argsort(-sizes, kind="stable")])}
    return np.array([order[d] for d in nearest], np.int32)


def separation(features: np.ndarray, domain: np.ndarray) -> float:
    """Share of a topic's variance that lies between its domains (0: none, 1: all)."""
    total = ((features - features.mean(axis=0)) ** 2).sum()
    within = sum(((features[domain == d] - features[domain == d].mean(axis=0)) ** 2).sum() for d in np.unique(domain))
    return float(1 - within / total) if total > 0 else 0.0


def find_domains(features: np.ndarray, topic: np.ndarray, settings: Domains, seed: int, progress) -> tuple[np.ndarray, dict]:
    """Splits every topic of (n, e) image features.

    Returns:
        (n,) domain within the topic, −1 outside all topics; and counts.
    """
    domain = np.full(len(topic), -1, np.int32)
    explained, domains, small = [], 0, 0
    for t in progress(range(int(topic.max()) + 1), "domains"):
        rows = np.flatnonzero(topic == t)
        domain[rows] = split_topic(np.ascontiguousarray(features[rows]), settings, seed)
        sizes = np.bincount(domain[rows])
        domains += len(sizes)
        small += int((sizes < settings.min_size).sum())
        explained.append(separation(features[rows], domain[rows]))
    return domain, {"domains": domains, "small_domains": small, "between_share": round(float(np.mean(explained)), 4)}
