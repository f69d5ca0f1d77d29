"""UMAP on a precomputed neighbour graph, kept on the way: an interrupted layout goes on behind the
last of its parts.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy import sparse
from sklearn.decomposition import PCA

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # umap announces its own deprecations at import
    import umap
    from umap.layouts import _get_optimize_layout_euclidean_single_epoch_fn  # no public way in
    from umap.umap_ import INT32_MAX, INT32_MIN, make_epochs_per_sample, noisy_scale_coords

from pipeline.artifacts import Arrays, Keep, made_anew
from pipeline.clustering.neighbours import Graph

PARTS = 20  # of the epochs
FEW = 10_000  # rows up to which UMAP takes more epochs, by its own default
NEGATIVE = 5  # samples that push away for each that draws near: UMAP's default
NONE = np.zeros(1, np.float32)  # of densMAP, which is not used


class KeptUMAP(umap.UMAP):
    """UMAP whose epochs are parts of a `Keep`: `fit_transform(rows, vectors=…, keep=…, told=…)`.

    The epochs, what they start from and their random numbers are UMAP's own: to the last bit, the
    result is that of `umap.UMAP` with init="pca". But the vectors are looked at only for the
    start, while UMAP holds three copies of them; `rows` is anything with as many rows.
    """

    def _fit_embed_data(self, X, n_epochs, init, random_state, **kwargs):
        """(n, components) places: what UMAP calls with what was given to fit, to be replaced."""
        vectors, keep, told = (kwargs[name] for name in ("vectors", "keep", "told"))
        epochs = 500 if len(X) <= FEW else 200  # as UMAP
        edges = edges_of(self.graph_, epochs)

        def begin() -> Arrays:
            places = first_places(vectors, self.n_components, random_state)
            seeds = random_state.randint(INT32_MIN, INT32_MAX, 3).astype(np.int64)
            seeds = seeds + places[:, :1].astype(np.float64).view(np.int64)
            return places, edges.every.copy(), edges.negative_every.copy(), seeds

        def draw(state: Arrays, part: np.ndarray) -> Arrays:
            for epoch in part.tolist():
                rate = 1.0 - max(0, epoch - 1) / epochs  # it falls behind the second one
                one_epoch(edges, state, (self._a, self._b), rate, epoch)
            return state

        parts = [partial(draw, part=part) for part in np.array_split(np.arange(epochs), PARTS)]
        return keep.steps("layout", begin, parts, told)[0], {}


@dataclass(frozen=True)
class Edges:
    """Of e edges, where they begin and end, and how many epochs lie between two draws of each, and
    between two samples that push its end away.
    """

    head: np.ndarray
    tail: np.ndarray
    every: np.ndarray
    negative_every: np.ndarray


def edges_of(graph: sparse.spmatrix, epochs: int) -> Edges:
    """The edges that are drawn at least once."""
    edges = graph.tocoo()
    edges.sum_duplicates()
    edges.data[edges.data < edges.data.max() / epochs] = 0
    edges.eliminate_zeros()
    every = make_epochs_per_sample(edges.data, epochs)
    return Edges(edges.row, edges.col, every, every / NEGATIVE)


def first_places(vectors: np.ndarray, components: int, random: np.random.RandomState) -> np.ndarray:
    """(n, components) the first principal ones of (n, d) rows, from 0 to 10 along each."""
    pca = PCA(components, random_state=random, copy=False)
    places = pca.fit_transform(vectors.astype(np.float32)).astype(np.float32)
    places = noisy_scale_coords(places, random, max_coord=10, noise=0.0001)
    least, most = places.min(axis=0), places.max(axis=0)
    return (10.0 * (places - least) / (most - least)).astype(np.float32, order="C")


def one_epoch(
    edges: Edges, state: Arrays, curve: tuple[float, float], rate: float, epoch: int
) -> None:
    """Moves the places of `state` along the edges whose turn it is, in place."""
    places, due, negative_due, seeds = state
    _get_optimize_layout_euclidean_single_epoch_fn(parallel=False)(
        places,
        places,
        edges.head,
        edges.tail,
        len(places),
        edges.every,
        *curve,
        seeds,
        1.0,  # weight of the samples that push away
        places.shape[1],
        True,  # both ends of an edge move
        rate,
        edges.negative_every,
        negative_due,
        due,
        epoch,
        *(False, NONE, NONE, 0, 0, 0, 0, NONE, NONE, 0),  # of densMAP
    )


def reduce(
    vectors: np.ndarray,
    graph: Graph,
    components: int,
    min_dist: float,
    seed: int,
    keep: Keep = made_anew,
    told: Callable[[], object] = lambda: None,
) -> np.ndarray:
    """(n, d) → (n, components) by UMAP on the graph, from the first principal components.

    `keep` is given the layout in `PARTS`, and `told` is called for each. One thread, because of the
    seed.
    """
    model = KeptUMAP(**_options(graph, components, min_dist, seed))
    rows = np.zeros((len(vectors), 1), np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.fit_transform(rows, vectors=vectors, keep=keep, told=told)


def spread(
    vectors: np.ndarray, graph: Graph, start: np.ndarray, epochs: int, seed: int
) -> np.ndarray:
    """(n, d) → (n, components) by UMAP on the graph, from (n, components) places, looser."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = umap.UMAP(**_options(graph, start.shape[1], 0.5, seed), init=start, n_epochs=epochs)
        return model.fit_transform(vectors)


def _options(graph: Graph, components: int, min_dist: float, seed: int) -> dict:
    return {
        "n_neighbors": graph[0].shape[1],
        "n_components": components,
        "min_dist": min_dist,
        "metric": "cosine",
        "precomputed_knn": (*graph, None),
        "random_state": seed,
        "n_jobs": 1,
    }
