"""Searches among normalised vectors: exact while that is cheap, approximate with a measured
recall beyond.
"""

from __future__ import annotations

import faiss
import numpy as np

from pipeline.errors import InputError

PROBES = 1000  # rows that the recall is measured on
TIE = 1e-6  # similarities that differ by less are equal: float32 sums of a few hundred products


def exact_index(vectors: np.ndarray) -> faiss.Index:
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    return index


def probes(vectors: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(p,) rows that a recall is measured on, and (p,) how similar the last of each one's true
    `count` neighbours is.
    """
    n = len(vectors)
    rows = np.random.default_rng(seed).choice(n, min(PROBES, n), replace=False)
    similarity, _ = exact_index(vectors).search(vectors[rows], min(count, n))
    return rows, similarity[:, -1]


def share_found(
    vectors: np.ndarray, rows: np.ndarray, found: np.ndarray, least: np.ndarray
) -> float:
    """Recall of a search: which share of the true neighbours of some rows is among those found.

    Whatever lies as near as the true ones is one of them: of rows that repeat, a search may give
    any.

    Args:
        vectors: (n, d) all rows; rows, least: as `probes` gives them. found: (p, count) neighbours
            of `rows`, −1 for none.
    """
    similarity = np.einsum("pd,pcd->pc", vectors[rows], vectors[found])
    hits = (found >= 0) & (similarity >= least[:, None] - TIE)
    return float(hits.sum() / (len(rows) * min(found.shape[1], len(vectors))))


def cell_index(
    vectors: np.ndarray, count: int, recall: float, seed: int
) -> tuple[faiss.Index, float]:
    """An inverted file over (n, d) normalised rows that looks into as few cells as reach the
    recall.

    Recall: share of the true `count` nearest rows that are found, over a sample of rows.

    Raises InputError if even looking into all cells would be needed.
    """
    n, d = vectors.shape
    cells = min(int(4 * n**0.5), n)
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(d), d, cells, faiss.METRIC_INNER_PRODUCT)
    # 1: no warning
    index.cp.seed, index.cp.spherical, index.cp.min_points_per_centroid = seed, True, 1
    index.train(vectors)
    index.add(vectors)
    rows, least = probes(vectors, count, seed)
    index.nprobe = 1
    while True:
        reached = share_found(vectors, rows, index.search(vectors[rows], count)[1], least)
        if reached >= recall:
            return index, reached
        if index.nprobe == cells:
            raise InputError(
                f"no approximate search over {n} rows reaches a recall of {recall}; raise this "
                "stage's 'exact_up_to', or lower its 'recall'"
            )
        index.nprobe = min(index.nprobe + index.nprobe // 4 + 1, cells)


def search_index(
    vectors: np.ndarray, count: int, exact_up_to: int, recall: float, seed: int
) -> tuple[faiss.Index, float]:
    """An index over (n, d) normalised rows, and its recall: exact (1.0) up to `exact_up_to`
    rows.
    """
    if len(vectors) > exact_up_to:
        return cell_index(vectors, count, recall, seed)
    return exact_index(vectors), 1.0
