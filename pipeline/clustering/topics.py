"""Semantic topics: a neighbour graph, UMAP on it, HDBSCAN in the reduced space.

Beyond `topics.fit_on` captions, a sample is clustered and every other caption follows the one of the
sample that is nearest to it.
"""

from __future__ import annotations

import warnings

import faiss
import numpy as np

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # umap and hdbscan announce their own deprecations at import
    import hdbscan
    import umap

from pipeline.clustering.neighbours import neighbour_graph, search_index
from pipeline.clustering.params import Topics
from pipeline.errors import InputError


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


def cluster(vectors: np.ndarray, index: faiss.Index, settings: Topics, seed: int, progress) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """(n,) topic, (n,) strength, (n, 2) place and validity, without outlier policy or sampling; `index` holds the vectors."""
    steps = progress(None, "neighbours", total=4)
    graph = neighbour_graph(index, vectors, settings.neighbours)
    advance(steps, "reducing")
    reduced = reduce(vectors, graph, settings.components, settings.min_dist, seed)
    advance(steps, "clustering")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        clusterer = hdbscan.HDBSCAN(
            min_cluster_size=settings.min_cluster_size, min_samples=settings.min_samples,
            cluster_selection_method=settings.selection, core_dist_n_jobs=1, gen_min_span_tree=True,
        ).fit(reduced.astype(np.float64))
    count = int(clusterer.labels_.max()) + 1
    if count < 2:
        raise InputError(f"{count} topics came out of {len(vectors)} captions; lower 'topics.min_cluster_size' (now {settings.min_cluster_size})")
    advance(steps, "mapping")
    place = reduce(vectors, graph, 2, 0.5, seed)  # looser than the clustering: dots side by side
    steps.close()
    return clusterer.labels_, clusterer.probabilities_, place, float(clusterer.relative_validity_)


def find_topics(vectors: np.ndarray, settings: Topics, seed: int, progress) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict]:
    """Clusters (n, d) normalised sentence embeddings.

    Returns:
        (n,) topic (−1: outlier), (n,) membership strength, (n, 2) map coordinates, and counts: recall of
        the neighbour graph, validity (HDBSCAN's fast form of DBCV, −1 to 1), coverage, …

    Raises:
        InputError if there are too few captions, or no topic comes out.
    """
    n = len(vectors)
    if n <= settings.neighbours:
        raise InputError(f"only {n} captions are left to cluster, but 'topics.neighbours' is {settings.neighbours}; lower it, or look why the filter drops so many")
    fitted = np.arange(n) if n <= settings.fit_on else np.sort(np.random.default_rng(seed).choice(n, settings.fit_on, replace=False))
    sample = vectors if len(fitted) == n else vectors[fitted]
    index, recall = search_index(sample, settings.neighbours, settings.exact_up_to, settings.recall, seed)
    topic, strength, place, validity = cluster(sample, index, settings, seed, progress)
    if len(fitted) < n:
        nearest = index.search(vectors, 1)[1].ravel()  # of a caption of the sample: itself, or its equal
        nearest[fitted] = np.arange(len(fitted))
        topic, strength, place = topic[nearest], strength[nearest], place[nearest]
    counts = {
        "recall": round(recall, 4), "validity": round(validity, 4), "captions": n, "fitted": len(fitted),
        "topics": int(topic.max()) + 1, "outliers_before": int((topic < 0).sum()),
    }
    if settings.outliers == "nearest":
        topic = join_outliers(vectors, topic, settings.nearest_similarity)
    counts["outliers"] = int((topic < 0).sum())
    counts["coverage"] = round(1 - counts["outliers"] / n, 4)
    return topic, strength, place, counts
