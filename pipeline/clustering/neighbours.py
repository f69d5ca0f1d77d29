"""The neighbour graph of sentence embeddings, which UMAP starts from."""

from __future__ import annotations

from functools import cache, partial

import numpy as np
from pynndescent import NNDescent

from pipeline.artifacts import Arrays, Keep, made_anew
from pipeline.errors import InputError
from pipeline.neighbours import exact_index, probes, share_found
from pipeline.stage import progress, warn

Graph = tuple[np.ndarray, np.ndarray]  # (n, neighbours) indices, and distances
WIDENED = (1, 2.5)  # times the neighbours that are asked for, one after the other
SHORT = 0.2  # recall: a graph that is this much worse than asked for is another graph


def _itself_first(found: np.ndarray, distance: np.ndarray) -> Graph:
    """The graph with each row as its own first neighbour; equal captions tie at distance 0, and
    another of them may come before it.
    """
    rows = np.arange(len(found))
    for row in np.flatnonzero(found[:, 0] != rows):
        place = np.flatnonzero(found[row] == row)
        swap = place[0] if len(place) else found.shape[1] - 1
        found[row, swap], distance[row, swap] = found[row, 0], distance[row, 0]
        found[row, 0], distance[row, 0] = row, 0.0
    return found.astype(np.int32), np.where(found < 0, np.inf, np.clip(distance, 0, 2)).astype(
        np.float32
    )


def _exact(vectors: np.ndarray, count: int) -> Arrays:
    similarity, found = exact_index(vectors).search(vectors.astype(np.float32), count)
    return found, 1 - similarity


def _descent(vectors: np.ndarray, count: int, wider: float, seed: int) -> Arrays:
    found, distance = NNDescent(
        vectors,
        metric="cosine",
        n_neighbors=min(round(wider * count), len(vectors)),
        random_state=seed,
        max_candidates=60,  # as UMAP itself takes
        n_jobs=1,  # because of the seed
    ).neighbor_graph
    return found[:, :count], distance[:, :count]


def neighbour_graph(
    vectors: np.ndarray,
    count: int,
    exact_up_to: int,
    recall: float,
    seed: int,
    keep: Keep = made_anew,
) -> tuple[Graph, float]:
    """(n, count) indices and cosine distances of the nearest rows, each row itself first, and the
    recall: exact (1.0) up to `exact_up_to` rows.

    Beyond, nearest-neighbour descent: for the graph of all rows, a search by cells takes several
    times as long for less recall (docs/speed.md). A neighbour that is not found is −1 at an
    infinite distance, which UMAP leaves out.

    Where the recall is short of `recall`, more neighbours are looked for than are asked for, by the
    factors of `WIDENED`; the nearest of them are kept. What stays short is warned of. `keep` is
    given what each of these searches finds, and its recall.

    Raises InputError if it stays more than `SHORT` below `recall`.
    """
    if len(vectors) <= exact_up_to:
        return _itself_first(*keep("neighbours", partial(_exact, vectors, count))), 1.0
    probed = cache(partial(probes, vectors, count, seed))  # made when it is needed

    def search(wider: float) -> Arrays:
        found, distance = _descent(vectors, count, wider, seed)
        rows, least = probed()
        return found, distance, np.array(share_found(vectors, rows, found[rows], least))

    for wider in progress(iter(WIDENED), "neighbours"):  # no total: the first may do
        found, distance, of_true = keep(f"neighbours-{wider}", partial(search, wider))
        reached = float(of_true)
        if reached >= recall:
            break
    if reached < recall:
        told = (
            f"the approximate neighbour graph of {len(vectors)} captions has a recall of "
            f"{reached:.3f} at best, but 'topics.recall' is {recall}; raise 'topics.exact_up_to' "
            "or lower 'topics.recall'"
        )
        if reached < recall - SHORT:
            raise InputError(told)
        warn(told)
    return _itself_first(found, distance), reached
