"""Semantic topics: an exact neighbour graph, UMAP on it, HDBSCAN in the reduced space."""

from __future__ import annotations

import warnings

import faiss
import numpy as np

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # umap and hdbscan announce their own deprecations at import
    import hdbscan
    import umap

from pipeline.clustering.params import Topics
from pipeline.errors import InputError


def neighbour_graph(vectors: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(n, count) indices and cosine distances of the nearest rows, each row itself first."""
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    similarity, found = index.search(vectors, count)
    rows = np.arange(len(vectors))
    # Equal captions tie at distance 0, and faiss may list another of them before the row itself.
    for row in np.flatnonzero(found[:, 0] != rows):
        place = np.flatnonzero(found[row] == row)
        swap = place[0] if len(place) else count - 1
        found[row, swap], similarity[row, swap] = found[row, 0], similarity[row, 0]
        found[row, 0], similarity[row, 0] = row, 1.0
    return found.astype(np.int32), np.clip(1 - similarity, 0, 2).astype(np.float32)


def reduce(vectors: np.ndarray, graph: tuple[np.ndarray, np.ndarray], components: int, min_dist: float, seed: int) -> np.ndarray:
    """(n, d) → (n, components) by UMAP on the precomputed graph; one thread, because of the seed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = umap.UMAP(
            n_neighbors=graph[0].shape[1], n_components=components, min_dist=min_dist, metric="cosine",
            precomputed_knn=(*graph, None), random_state=seed, n_jobs=1,
        )
        return model.fit_transform(vectors)


def join_outliers(vectors: np.ndarray, topic: np.ndarray, least: float) -> np.ndarray:
    """Topics with each outlier moved to the topic whose mean sentence is nearest, if similar enough."""
    count = topic.max() + 1
    centres = np.stack([vectors[topic == t].mean(axis=0) for t in range(count)])
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    outside = np.flatnonzero(topic < 0)
    similarity = vectors[outside] @ centres.T
    close = similarity.max(axis=1) >= least
    joined = topic.copy()
    joined[outside[close]] = similarity.argmax(axis=1)[close]
    return joined


def advance(bar, label: str) -> None:
    bar.update()
    bar.set_description(label)


def find_topics(vectors: np.ndarray, settings: Topics, seed: int, progress) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict]:
    """Clusters (n, d) normalised sentence embeddings.

    Returns:
        (n,) topic (−1: outlier), (n,) membership strength, (n, 2) map coordinates, and counts.

    Raises:
        InputError if there are too few captions, or no topic comes out.
    """
    if len(vectors) <= settings.neighbours:
        raise InputError(f"only {len(vectors)} captions are left to cluster, but 'topics.neighbours' is {settings.neighbours}; lower it, or look why the filter drops so many")
    steps = progress(None, "neighbours", total=4)
    graph = neighbour_graph(vectors, settings.neighbours)
    advance(steps, "reducing")
    reduced = reduce(vectors, graph, settings.components, settings.min_dist, seed)
    advance(steps, "clustering")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        clusterer = hdbscan.HDBSCAN(
            min_cluster_size=settings.min_cluster_size, min_samples=settings.min_samples,
            cluster_selection_method=settings.selection, core_dist_n_jobs=1,
        ).fit(reduced.astype(np.float64))
    topic, strength = clusterer.labels_, clusterer.probabilities_
    count = int(topic.max()) + 1
    if count < 2:
        raise InputError(f"{count} topics came out of {len(vectors)} captions; lower 'topics.min_cluster_size' (now {settings.min_cluster_size})")
    outside = int((topic < 0).sum())
    if settings.outliers == "nearest":
        topic = join_outliers(vectors, topic, settings.nearest_similarity)
    advance(steps, "mapping")
    place = reduce(vectors, graph, 2, 0.5, seed)  # looser than the clustering: dots side by side
    steps.close()
    counts = {"captions": len(topic), "topics": count, "outliers_before": outside, "outliers": int((topic < 0).sum())}
    counts["coverage"] = round(1 - counts["outliers"] / len(topic), 4)
    return topic, strength, place, counts
