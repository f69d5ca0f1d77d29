"""Semantic topics: a neighbour graph, UMAP on it, HDBSCAN in the reduced space.

Beyond `topics.fit_on` captions, a sample is clustered and every other caption follows the one of
the sample that is nearest to it. The least size of a topic counts all captions, so in the sample it
is less.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cache, partial
from typing import TypeVar

import faiss
import numpy as np
from scipy import sparse
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # hdbscan announces its own deprecations at import
    import hdbscan

from pipeline.apart import apart
from pipeline.artifacts import Keep, made_anew
from pipeline.clustering.layout import PARTS, reduce, spread
from pipeline.clustering.neighbours import Graph, neighbour_graph
from pipeline.clustering.params import (
    Clustering,
    Grouping,
    Mapping,
    Neighbourhood,
    Repeating,
)
from pipeline.clustering.points import BLOCK, clusters, distinct
from pipeline.errors import InputError, require
from pipeline.neighbours import PROBES, exact_index, search_index

MAP_EPOCHS = 100  # UMAP's own default for few points is 500; the map starts from a finished layout
AGrouping = TypeVar("AGrouping", bound=Grouping)
FOLLOWING = 20  # parts of the rows that follow a sample
# of the similarity to the nearest row of the sample. What resembles nothing has many rows at nearly
# the same distance, and finding the nearest of them takes a hundred times as long as all the rest
AS_NEAR = 0.02
FOR_A_MINUTE = 100_000  # points: HDBSCAN takes about half a second for a thousand
JOINED = 8_192  # outliers that are compared with all topics at once


def centres_of(vectors: np.ndarray, topic: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """(topics, d) mean of each topic's (n, d) weighted rows, normalised, float32."""
    count = int(topic.max()) + 1
    sums = np.zeros((count, vectors.shape[1]))
    for start in range(0, len(vectors), BLOCK):
        inside = np.flatnonzero(topic[start : start + BLOCK] >= 0) + start
        member = sparse.csr_matrix(
            (weight[inside].astype(float), (topic[inside], np.arange(len(inside)))),
            shape=(count, len(inside)),
        )
        sums += member @ vectors[inside].astype(np.float32)
    # opposite vectors cancel out: such a centre is near nothing
    return (sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)).astype(
        np.float32
    )


def join_outliers(
    vectors: np.ndarray, topic: np.ndarray, least: float, weight: np.ndarray | None = None
) -> np.ndarray:
    """Topics with each outlier moved to the topic whose mean sentence is nearest, if similar
    enough; `weight`: how many captions each of the (n, d) rows stands for (default: one).
    """
    centres = centres_of(vectors, topic, np.ones(len(topic)) if weight is None else weight)
    outside, joined = np.flatnonzero(topic < 0), topic.copy()
    for start in range(0, len(outside), JOINED):
        rows = outside[start : start + JOINED]
        similarity = vectors[rows].astype(np.float32) @ centres.T
        nearest = similarity.argmax(axis=1)
        close = similarity[np.arange(len(rows)), nearest] >= least
        joined[rows[close]] = nearest[close]
    return joined


def sample_of(n: int, most: int, seed: int) -> np.ndarray:
    """`most` of n row numbers at random, in order; all of them if there are no more."""
    return (
        np.arange(n)
        if n <= most
        else np.sort(np.random.default_rng(seed).choice(n, most, replace=False))
    )


def lay_out(
    vectors: np.ndarray, reduced: np.ndarray, settings: Mapping, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows that stand on the map, `topics.map_on` at most, and their (n, 2) places.

    The layout starts from the first principal components of the (n, components) `reduced` rows and
    is looser: dots stand side by side.
    """
    check_sample("map_on", settings.map_on, len(vectors), settings)
    shown = sample_of(len(vectors), settings.map_on, seed)
    graph, _ = neighbour_graph(
        vectors[shown], settings.neighbours, settings.exact_up_to, settings.recall, seed
    )
    start = PCA(2, random_state=seed).fit_transform(reduced[shown])
    start = 10 * start / max(np.abs(start).max(), 1e-9)
    return shown, spread(vectors[shown], graph, start, MAP_EPOCHS, seed)


@dataclass(frozen=True)
class Grouped:
    """What HDBSCAN finds among d points.

    Attributes:
        reduced: (d, components) what it looked at. topic: (d,) −1 outside. strength: (d,)
        membership. validity: its fast form of DBCV (−1 to 1).
    """

    reduced: np.ndarray
    topic: np.ndarray
    strength: np.ndarray
    validity: float


def check_installed(settings: Grouping) -> None:
    """Raises InputError if the selection needs fast_hdbscan, which is not installed: before the
    layout, which may take hours.
    """
    if settings.selection == "plscan":
        require("fast_hdbscan", "plscan", "parameter 'topics.selection' is 'plscan'")


def persistent_size(reduced: np.ndarray, min_samples: int) -> int:
    """The least size of a topic at which the leaves of HDBSCAN's tree over (d, components) points
    persist longest, summed over topics (PLSCAN).
    """
    from fast_hdbscan import PLSCAN  # here: it compiles for half a minute when first imported

    found = PLSCAN(min_samples=min_samples, reproducible=True).fit(reduced)
    if len(found.layer_persistence_scores_) == 1:  # no size stands out
        return int(found.base_min_cluster_size)
    at = np.flatnonzero(found.total_persistence_ == max(found.layer_persistence_scores_))[0]
    # a layer is of the topics that outlast a size
    return int(found.min_cluster_sizes_[at]) + 1


def group(
    vectors: np.ndarray,
    weight: np.ndarray,
    graph: Graph,
    settings: Grouping,
    seed: int,
    progress,
    keep: Keep = made_anew,
) -> Grouped:
    """UMAP on the graph, and HDBSCAN in the reduced space; each row is a point that counts `weight`
    captions.
    """
    how = (settings.components, settings.min_dist, seed)
    with progress(None, "layout", total=PARTS) as bar:
        (reduced,) = keep("reduced", lambda: (reduce(vectors, graph, *how, keep, bar.update),))
    with progress(None, "clusters", total=1):
        find = partial(by_density, reduced, weight, settings)
        find = partial(apart, find) if len(reduced) > FOR_A_MINUTE else find
        topic, strength, validity = keep("clusters", find)
    return Grouped(reduced, topic, strength, float(validity))


def by_density(
    reduced: np.ndarray, weight: np.ndarray, settings: Grouping
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`topic`, `strength` and `validity` of what HDBSCAN finds among (d, components) points, each
    of which counts `weight` captions; see `Grouped`.
    """
    if settings.selection == "plscan":
        size = persistent_size(reduced, settings.min_samples)
        settings = settings.model_copy(update={"selection": "leaf", "min_cluster_size": size})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = hdbscan.HDBSCAN(
            min_cluster_size=settings.min_cluster_size,
            min_samples=settings.min_samples,
            cluster_selection_method=settings.selection,
            core_dist_n_jobs=1,
            gen_min_span_tree=True,
        ).fit(reduced.astype(np.float64))
    if weight.max() > 1:
        found.labels_, found.probabilities_ = clusters(
            found.single_linkage_tree_.to_numpy(), weight, settings
        )
    validity = float(found.relative_validity_) if found.labels_.max() > 0 else 0.0
    return found.labels_, found.probabilities_, np.array(validity)


def of_sample(settings: AGrouping, share: float) -> AGrouping:
    """The same with the least size of a topic in a sample of this share."""
    least = max(2, round(settings.min_cluster_size * share))
    return settings.model_copy(update={"min_cluster_size": least})


def cluster(
    vectors: np.ndarray,
    weight: np.ndarray,
    settings: Clustering,
    seed: int,
    progress,
    keep: Keep = made_anew,
) -> tuple[Grouped, dict]:
    """What HDBSCAN finds, without outlier policy or sampling, and how good graph and topics are;
    each row is a point that counts `weight` captions.
    """
    how = (settings.neighbours, settings.exact_up_to, settings.recall, seed)
    graph, recall = neighbour_graph(vectors, *how, keep)
    found = group(vectors, weight, graph, settings, seed, progress, keep)
    count = int(found.topic.max()) + 1
    if count < 2:
        first = f"lower 'topics.min_cluster_size' (now {settings.min_cluster_size}) or"
        if settings.selection == "plscan":
            first = "choose another 'topics.selection' than plscan, or lower"
        raise InputError(
            f"{count} topics came out of {weight.sum()} captions; {first} 'topics.min_samples' "
            f"(now {settings.min_samples})"
        )
    return found, {"recall": round(float(recall), 4), "validity": round(found.validity, 4)}


def stability(
    vectors: np.ndarray,
    weight: np.ndarray,
    topic: np.ndarray,
    settings: Repeating,
    seed: int,
    progress,
) -> float:
    """Mean adjusted Rand index, over captions, of HDBSCAN's (n,) topics with those of other seeds
    on the same graph.
    """
    check_installed(settings)
    graph, _ = neighbour_graph(
        vectors, settings.neighbours, settings.exact_up_to, settings.recall, seed
    )
    others = (
        group(vectors, weight, graph, settings, seed + repeat, progress).topic
        for repeat in range(1, settings.repeats + 1)
    )
    captions = np.repeat(topic, weight)
    found = [adjusted_rand_score(captions, np.repeat(other, weight)) for other in others]
    return round(float(np.mean(found)), 4)


def check_sample(name: str, most: int, points: int, settings: Neighbourhood) -> None:
    """Raises InputError where a sample is too small for the neighbourhoods that are asked for."""
    if settings.neighbours >= most and points > most:
        raise InputError(
            f"parameter 'topics.{name}' is {most}, but each caption needs 'topics.neighbours' "
            f"({settings.neighbours}) others beside it; raise 'topics.{name}' above that"
        )


def check_sizes(captions: int, points: int, dim: int, settings: Clustering) -> None:
    """Raises InputError where there is too little for the neighbourhoods that are asked for."""
    if points <= settings.neighbours:
        raise InputError(
            f"only {captions} captions are left to cluster, {points} of them different, but "
            f"'topics.neighbours' is {settings.neighbours}; lower it, or look why the filter drops "
            "so many"
        )
    check_sample("fit_on", settings.fit_on, points, settings)
    most = min(points - 1, settings.fit_on - 1, dim)
    if settings.components > most:
        raise InputError(
            f"parameter 'topics.components' is {settings.components}, but what is laid out are "
            f"{min(points, settings.fit_on)} different captions of {dim} dimensions; lower it to "
            f"{most} or less"
        )


@dataclass(frozen=True)
class Found:
    """The topics of n captions.

    Attributes:
        topic: (n,) −1: outlier. strength: (n,) membership.
        fitted: rows of the captions that were clustered, one of each point of the sample.
        grouped: what HDBSCAN found among these, before outliers join a topic.
        counts: recall of the neighbour graph, validity, coverage, …
    """

    topic: np.ndarray
    strength: np.ndarray
    fitted: np.ndarray
    grouped: Grouped
    counts: dict


def find_topics(
    vectors: np.ndarray, settings: Clustering, seed: int, progress, keep: Keep = made_anew
) -> Found:
    """Clusters (n, d) normalised sentence embeddings, float16 or float32; equal ones are one point.

    `keep` is given each step that takes minutes at millions of captions: neighbours, reduced (its
    layout in parts), clusters, nearest in parts.

    Raises InputError if there are too few captions, or no topic comes out.
    """
    check_installed(settings)
    n, points = len(vectors), distinct(vectors)
    check_sizes(n, len(points.rows), vectors.shape[1], settings)
    if len(points.rows) < n:
        vectors = vectors[points.rows]
    different = len(vectors)
    fitted = sample_of(different, settings.fit_on, seed)
    sample = vectors if len(fitted) == different else vectors[fitted]
    smaller = of_sample(settings, len(fitted) / different)
    grouped, quality = cluster(sample, points.weight[fitted], smaller, seed, progress, keep)
    topic, strength = grouped.topic, grouped.strength
    if len(fitted) < different:
        nearest = follow(vectors, fitted, settings, seed, progress, keep)
        topic, strength = topic[nearest], strength[nearest]
    outside = points.weight[topic < 0].sum()
    if settings.outliers == "nearest":
        topic = join_outliers(vectors, topic, settings.nearest_similarity, points.weight)
    counts = {
        **quality,
        "captions": n,
        "distinct": different,
        "fitted": len(fitted),
        "topics": int(topic.max()) + 1,
        "outliers_before": int(outside),
        "outliers": int(points.weight[topic < 0].sum()),
    }
    counts["coverage"] = round(1 - counts["outliers"] / n, 4)
    rows = points.rows[fitted]
    return Found(topic[points.point], strength[points.point], rows, grouped, counts)


def follow(
    vectors: np.ndarray,
    fitted: np.ndarray,
    settings: Neighbourhood,
    seed: int,
    progress,
    keep: Keep = made_anew,
) -> np.ndarray:
    """(n,) for each of (n, d) rows the nearest row of the sample, which is the (s,) rows `fitted`;
    of the sample's own, themselves.

    Beyond `exact_up_to` rows of the sample, as many cells are searched as find, for the share
    `recall` of the others, a row that is as similar as the nearest, to `AS_NEAR`.

    What each of `FOLLOWING` parts of the others follow is given to `keep`.
    """
    others = np.setdiff1d(np.arange(len(vectors)), fitted)
    asked = vectors[others[:: max(1, len(others) // PROBES)]]
    sample = vectors[fitted].astype(np.float32)

    @cache
    def index() -> faiss.Index:  # made when it is needed
        how = (settings.exact_up_to, settings.recall, seed, asked, AS_NEAR)
        return search_index(sample, 1, *how)[0]

    def search(starts: np.ndarray) -> tuple[np.ndarray]:
        found = []
        for start in starts:
            rows = vectors[others[start : start + BLOCK]].astype(np.float32)
            found.append(index().search(rows, 1)[1].ravel())
            empty = found[-1] < 0  # the cells that were looked into hold nothing
            if empty.any():
                found[-1][empty] = exact_index(sample).search(rows[empty], 1)[1].ravel()
        return (np.concatenate(found),)

    starts = np.arange(0, len(others), BLOCK)
    parts = np.array_split(starts, min(FOLLOWING, len(starts)))
    nearest = np.empty(len(vectors), np.int64)
    nearest[fitted] = np.arange(len(fitted))
    nearest[others] = np.concatenate(
        [
            keep(f"nearest-{number}", partial(search, part))[0]
            for number, part in enumerate(progress(parts, "following"))
        ]
    )
    return nearest
