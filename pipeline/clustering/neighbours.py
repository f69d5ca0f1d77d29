"""Nearest neighbours among sentence embeddings: exact while that is cheap, approximate with a measured recall beyond."""

from __future__ import annotations

import faiss
import numpy as np

from pipeline.errors import InputError

PROBES = 1000  # rows that the recall is measured on


def exact_index(vectors: np.ndarray) -> faiss.Index:
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    return index


def cell_index(vectors: np.ndarray, count: int, recall: float, seed: int) -> tuple[faiss.Index, float]:
    """An inverted file over (n, d) normalised rows that looks into as few cells as reach the recall.

    Recall: share of the true `count` nearest rows that are found, over a sample of rows.

    Raises InputError if even looking into all cells would be needed.
    """
    n, d = vectors.shape
    cells = int(4 * n**0.5)
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(d), d, cells, faiss.METRIC_INNER_PRODUCT)
    index.cp.seed, index.cp.spherical, index.cp.min_points_per_centroid = seed, True, 1  # 1: no warning
    index.train(vectors)
    index.add(vectors)
    probes = vectors[np.random.default_rng(seed).choice(n, min(PROBES, n), replace=False)]
    true = exact_index(vectors).search(probes, count)[1]
    index.nprobe = 1
    while True:
        found = index.search(probes, count)[1]
        reached = float(np.mean([len(np.intersect1d(a, b)) / count for a, b in zip(true, found)]))
        if reached >= recall:
            return index, reached
        if index.nprobe == cells:
            raise InputError(f"no approximate search over {n} captions reaches a recall of {recall}; raise 'topics.exact_up_to' or lower 'topics.recall'")
        index.nprobe = min(index.nprobe + index.nprobe // 4 + 1, cells)


def search_index(vectors: np.ndarray, count: int, exact_up_to: int, recall: float, seed: int) -> tuple[faiss.Index, float]:
    """An index over (n, d) normalised rows, and its recall: exact (1.0) up to `exact_up_to` rows."""
    if len(vectors) > exact_up_to:
        return cell_index(vectors, count, recall, seed)
    return exact_index(vectors), 1.0


def neighbour_graph(index: faiss.Index, vectors: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(n, count) indices and cosine distances of the nearest rows, each row itself first.

    Where the cells that were looked into hold fewer rows, the rest is −1 at an infinite distance, which UMAP leaves out.
    """
    similarity, found = index.search(vectors, count)
    rows = np.arange(len(vectors))
    # Equal captions tie at distance 0, and faiss may list another of them before the row itself.
    for row in np.flatnonzero(found[:, 0] != rows):
        place = np.flatnonzero(found[row] == row)
        swap = place[0] if len(place) else count - 1
        found[row, swap], similarity[row, swap] = found[row, 0], similarity[row, 0]
        found[row, 0], similarity[row, 0] = row, 1.0
    distance = np.where(found < 0, np.inf, np.clip(1 - similarity, 0, 2))
    return found.astype(np.int32), distance.astype(np.float32)
