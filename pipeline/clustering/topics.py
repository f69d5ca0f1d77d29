"""Semantic topics: a neighbour graph, UMAP on it, HDBSCAN in the reduced space.

Beyond `topics.fit_on` captions, a sample is clustered and every other caption follows the one of
the sample that is nearest to it. The least size of a topic counts all captions, so in the sample it
is less.
"""

from __future__ import annotations

import warnings

import numpy as np
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # umap and hdbscan announce their own deprecations at import
    import hdbscan
    import umap

from pipeline.clustering.neighbours import neighbour_graph
from pipeline.clustering.params import Topics
from pipeline.errors import InputError
from pipeline.neighbours import search_index

MAP_EPOCHS = 100  # UMAP's own default for few points is 500; the map starts from a finished layout


def reduce(
    vectors: np.ndarray,
    graph: tuple[np.ndarray, np.ndarray],
    components: int,
    min_dist: float,
    seed: int,
    **others,
) -> np.ndarray:
    """(n, d) → (n, components) by UMAP on the precomputed graph, with `others` of its options;
    one thread, because of the seed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = umap.UMAP(
            n_neighbors=graph[0].shape[1],
            n_components=components,
            min_dist=min_dist,
            metric="cosine",
            precomputed_knn=(*graph, None),
            random_state=seed,
            n_jobs=1,
            **others,
        )
        return model.fit_transform(vectors)


def join_outliers(vectors: np.ndarray, topic: np.ndarray, least: float) -> np.ndarray:
    """Topics with each outlier moved to the topic whose mean sentence is nearest, if similar
    enough.
    """
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


def sample_of(n: int, most: int, seed: int) -> np.ndarray:
    """`most` of n row numbers at random, in order; all of them if there are no more."""
    return (
        np.arange(n)
        if n <= most
        else np.sort(np.random.default_rng(seed).choice(n, most, replace=False))
    )


def lay_out(
    vectors: np.ndarray,
    graph: tuple[np.ndarray, np.ndarray],
    reduced: np.ndarray,
    settings: Topics,
    seed: int,
) -> np.ndarray:
    """(n, 2) places on the map; beyond `topics.map_on` rows, NaN for all but a sample.

    The layout starts from the first principal components of the `reduced` rows and is looser: dots
    stand side by side.
    """
    shown = sample_of(len(vectors), settings.map_on, seed)
    if len(shown) < len(vectors):
        graph, _ = neighbour_graph(
            vectors[shown], settings.neighbours, settings.exact_up_to, settings.recall, seed
        )
    place = np.full((len(vectors), 2), np.nan, np.float32)
    start = PCA(2, random_state=seed).fit_transform(reduced[shown])
    place[shown] = reduce(
        vectors[shown],
        graph,
        2,
        0.5,
        seed,
        init=10 * start / np.abs(start).max(),
        n_epochs=MAP_EPOCHS,
    )
    return place


def group(
    vectors: np.ndarray, graph: tuple[np.ndarray, np.ndarray], settings: Topics, seed: int
) -> tuple[np.ndarray, hdbscan.HDBSCAN]:
    """(n, components) reduced rows and HDBSCAN's clusters of them."""
    reduced = reduce(vectors, graph, settings.components, settings.min_dist, seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return reduced, hdbscan.HDBSCAN(
            min_cluster_size=settings.min_cluster_size,
            min_samples=settings.min_samples,
            cluster_selection_method=settings.selection,
            core_dist_n_jobs=1,
            gen_min_span_tree=True,
        ).fit(reduced.astype(np.float64))


def cluster(
    vectors: np.ndarray, settings: Topics, seed: int, progress
) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict]:
    """(n,) topic, (n,) strength, (n, 2) place and how good graph and topics are, without outlier
    policy or sampling.

    Validity is HDBSCAN's fast form of DBCV (−1 to 1); stability is the mean ARI with topics of
    other seeds.
    """
    steps = progress(None, "neighbours", total=3 + settings.repeats)
    graph, recall = neighbour_graph(
        vectors, settings.neighbours, settings.exact_up_to, settings.recall, seed
    )
    advance(steps, "clustering")
    reduced, found = group(vectors, graph, settings, seed)
    count = int(found.labels_.max()) + 1
    if count < 2:
        raise InputError(
            f"{count} topics came out of {len(vectors)} captions; lower 'topics.min_cluster_size' "
            f"(now {settings.min_cluster_size})"
        )
    quality = {"recall": round(recall, 4), "validity": round(float(found.relative_validity_), 4)}
    advance(steps, "mapping")
    place = lay_out(vectors, graph, reduced, settings, seed)
    agreement = []
    for repeat in range(1, settings.repeats + 1):
        advance(steps, "with another seed")
        agreement.append(
            adjusted_rand_score(
                found.labels_, group(vectors, graph, settings, seed + repeat)[1].labels_
            )
        )
    steps.close()
    if agreement:
        quality["stability"] = round(float(np.mean(agreement)), 4)
    return found.labels_, found.probabilities_, place, quality


def find_topics(
    vectors: np.ndarray, settings: Topics, seed: int, progress
) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict]:
    """Clusters (n, d) normalised sentence embeddings.

    Returns:
        (n,) topic (−1: outlier), (n,) membership strength, (n, 2) map coordinates (NaN: not on the
        map), and counts: recall of the neighbour graph, validity, stability, coverage, …

    Raises:
        InputError if there are too few captions, or no topic comes out.
    """
    n = len(vectors)
    if n <= settings.neighbours:
        raise InputError(
            f"only {n} captions are left to cluster, but 'topics.neighbours' is "
            f"{settings.neighbours}; lower it, or look why the filter drops so many"
        )
    fitted = sample_of(n, settings.fit_on, seed)
    sample = vectors if len(fitted) == n else vectors[fitted]
    of_sample = settings.model_copy(
        update={"min_cluster_size": max(2, round(settings.min_cluster_size * len(fitted) / n))}
    )
    topic, strength, place, quality = cluster(sample, of_sample, seed, progress)
    if len(fitted) < n:
        index, _ = search_index(
            sample, settings.neighbours, settings.exact_up_to, settings.recall, seed
        )
        # of a caption of the sample: itself, or its equal
        nearest = index.search(vectors, 1)[1].ravel()
        nearest[fitted] = np.arange(len(fitted))
        topic, strength, place = topic[nearest], strength[nearest], place[nearest]
    counts = {
        **quality,
        "captions": n,
        "fitted": len(fitted),
        "topics": int(topic.max()) + 1,
        "outliers_before": int((topic < 0).sum()),
    }
    if settings.outliers == "nearest":
        topic = join_outliers(vectors, topic, settings.nearest_similarity)
    counts["outliers"] = int((topic < 0).sum())
    counts["coverage"] = round(1 - counts["outliers"] / n, 4)
    return topic, strength, place, counts
