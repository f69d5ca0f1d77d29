"""The neighbour graph of sentence embeddings, which UMAP starts from."""

from __future__ import annotations

import numpy as np
from pynndescent import NNDescent

from pipeline.errors import InputError
from pipeline.neighbours import exact_index, probes, share_found
from pipeline.stage import warn

WIDENED = (1, 1.5, 2.5)  # times the neighbours that are asked for, one after the other
SHORT = 0.15  # recall: a graph that is this much worse than asked for is another graph


def _itself_first(found: np.ndarray, distance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
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


def _descent(vectors: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    n = len(vectors)
    # as many trees and rounds as UMAP itself takes; one thread, because of the seed
    trees, rounds = min(64, 5 + round(n**0.5 / 20)), max(5, round(np.log2(n)))
    return NNDescent(
        vectors,
        metric="cosine",
        n_neighbors=count,
        random_state=seed,
        n_trees=trees,
        n_iters=rounds,
        max_candidates=60,
        n_jobs=1,
    ).neighbor_graph


def neighbour_graph(
    vectors: np.ndarray, count: int, exact_up_to: int, recall: float, seed: int
) -> tuple[tuple[np.ndarray, np.ndarray], float]:
    """(n, count) indices and cosine distances of the nearest rows, each row itself first, and the
    recall: exact (1.0) up to `exact_up_to` rows.

    Beyond, nearest-neighbour descent: for the graph of all rows, a search by cells takes several
    times as long for less recall (docs/speed.md). A neighbour that is not found is −1 at an
    infinite distance, which UMAP leaves out.

    Where the recall is short of `recall`, more neighbours are looked for than are asked for, by the
    factors of `WIDENED`; the nearest of them are kept. What stays short is warned of.

    Raises InputError if it stays more than `SHORT` below `recall`.
    """
    if len(vectors) <= exact_up_to:
        similarity, found = exact_index(vectors).search(vectors, count)
        return _itself_first(found, 1 - similarity), 1.0
    rows, least = probes(vectors, count, seed)
    for wider in WIDENED:
        found, distance = _descent(vectors, min(round(wider * count), len(vectors)), seed)
        found, distance = found[:, :count], distance[:, :count]
        reached = share_found(vectors, rows, found[rows], least)
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
