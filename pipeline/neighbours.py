"""Searches among normalised vectors: exact while that is cheap, approximate with a measured
recall beyond.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, cast

import faiss
import numpy as np

from pipeline.artifacts import Keep, made_anew
from pipeline.errors import InputError

PROBES = 1000  # rows that the recall is measured on
TRAINED = 32  # rows a cell that its centre is learned from
ROUNDS = 4  # of k-means for cells in which copies lie: more find no more of them
COMPONENTS = 128  # principal ones, of a few hundred dimensions
BLOCK = 16_384  # rows at a time, where a copy of all is not wanted
LOOKED_AT = 20  # times as many rows: of which those with copies are sought
MANY_CELLS = 32  # hold nearly all copies
GROUPS = 8  # of cells, in which a row's own one is looked for
SLACK = 1e-3  # of a squared distance of float32 numbers
TIE = 1e-6  # similarities that differ by less are equal: float32 sums of a few hundred products


def exact_index(vectors: np.ndarray) -> faiss.Index:
    """vectors: float16 or float32."""
    index = faiss.IndexFlatIP(vectors.shape[1])
    for start in range(0, len(vectors), BLOCK):
        index.add(vectors[start : start + BLOCK].astype(np.float32))
    return index


def probes(
    vectors: np.ndarray, count: int, seed: int, asked: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(p,) rows of `asked` (None: of `vectors`) that a recall is measured on, and (p,) how similar
    the last of each one's true `count` neighbours among `vectors` is.
    """
    asked = vectors if asked is None else asked
    rows = np.random.default_rng(seed).choice(len(asked), min(PROBES, len(asked)), replace=False)
    queries = asked[rows].astype(np.float32)
    similarity, _ = exact_index(vectors).search(queries, min(count, len(vectors)))
    return rows, similarity[:, -1]


def share_found(
    vectors: np.ndarray,
    rows: np.ndarray,
    found: np.ndarray,
    least: np.ndarray,
    asked: np.ndarray | None = None,
    slack: float = TIE,
) -> float:
    """Recall of a search: which share of the true neighbours of some rows is among those found.

    Whatever lies as near as the true ones, to `slack`, is one of them: of rows that repeat, a
    search may give any.

    Args:
        vectors: (n, d) all rows; rows, least, asked: as `probes` has them. found: (p, count)
            neighbours of `rows`, −1 for none.
    """
    queries = (vectors if asked is None else asked)[rows]
    similarity = np.einsum("pd,pcd->pc", queries, vectors[found], dtype=np.float32)
    hits = (found >= 0) & (similarity >= least[:, None] - slack)
    return float(hits.sum() / (len(rows) * min(found.shape[1], len(vectors))))


def cell_index(
    vectors: np.ndarray,
    count: int,
    recall: float,
    seed: int,
    asked: np.ndarray | None = None,
    slack: float = TIE,
) -> tuple[faiss.Index, float]:
    """An inverted file over (n, d) normalised rows that looks into as few cells as reach the
    recall.

    Recall: share of the true `count` nearest rows that are found, over a sample of the rows that
    will be `asked` for (None: the same rows, each of which is its own nearest); what is less
    similar by `slack` at most is as good.

    Raises InputError if even looking into all cells would be needed.
    """
    n, d = vectors.shape
    cells = min(int(4 * n**0.5), n)
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(d), d, cells, faiss.METRIC_INNER_PRODUCT)
    # 1: no warning
    index.cp.seed, index.cp.spherical, index.cp.min_points_per_centroid = seed, True, 1
    index.cp.max_points_per_centroid = TRAINED
    index.train(vectors)
    index.add(vectors)
    rows, least = probes(vectors, count, seed, asked)
    queries = (vectors if asked is None else asked)[rows].astype(np.float32)
    index.nprobe = 1
    while True:
        reached = share_found(vectors, rows, index.search(queries, count)[1], least, asked, slack)
        if reached >= recall:
            return index, reached
        if index.nprobe == cells:
            raise InputError(
                f"no approximate search over {n} rows reaches a recall of {recall}; raise this "
                "stage's 'exact_up_to', or lower its 'recall'"
            )
        index.nprobe = min(index.nprobe + index.nprobe // 4 + 1, cells)


def search_index(
    vectors: np.ndarray,
    count: int,
    exact_up_to: int,
    recall: float,
    seed: int,
    asked: np.ndarray | None = None,
    slack: float = TIE,
) -> tuple[faiss.Index, float]:
    """An index over (n, d) normalised rows, and its recall for the rows that will be `asked` for
    (None: the same; see `cell_index`): exact (1.0) up to `exact_up_to` rows.
    """
    if len(vectors) > exact_up_to:
        return cell_index(vectors, count, recall, seed, asked, slack)
    return exact_index(vectors), 1.0


def _narrowed(
    vectors: np.ndarray, narrow: faiss.LinearTransform
) -> Iterator[tuple[slice, np.ndarray]]:
    """Blocks of rows, and their (b, e) components."""
    for start in range(0, len(vectors), BLOCK):
        rows = slice(start, min(start + BLOCK, len(vectors)))
        yield rows, narrow.apply(vectors[rows].astype(np.float32))


def _found_by_groups(centres: np.ndarray) -> faiss.Index:
    """The (c, e) centres, of which the nearest are looked for in a few of √c groups: beyond a
    million rows, comparing each of them with every centre would be most of the work.
    """
    groups = max(1, int(len(centres) ** 0.5))
    found = faiss.IndexIVFFlat(faiss.IndexFlatL2(centres.shape[1]), centres.shape[1], groups)
    found.cp.min_points_per_centroid = 1
    found.train(centres)
    found.add(centres)
    found.nprobe = min(GROUPS, groups)
    return found


def _trained(vectors: np.ndarray, seed: int) -> tuple[np.ndarray]:
    """An index for (n, d) rows that was trained, without rows, as faiss serialises it."""
    n, d = vectors.shape
    cells = min(int(4 * n**0.5), n)
    rng = np.random.default_rng(seed)
    sample = vectors[rng.choice(n, min(n, TRAINED * cells), replace=False)].astype(np.float32)
    narrow = faiss.PCAMatrix(d, min(d, COMPONENTS, len(sample)))
    narrow.train(sample)
    e = narrow.d_out
    index = faiss.IndexIVFFlat(faiss.IndexFlatL2(e), e, cells)
    index.cp.seed, index.cp.min_points_per_centroid, index.cp.niter = seed, 1, ROUNDS
    index.train(narrow.apply(sample))
    index = faiss.IndexIVFFlat(_found_by_groups(index.quantizer.reconstruct_n(0, cells)), e, cells)
    return (faiss.serialize_index(faiss.IndexPreTransform(narrow, index)),)


class CloseRows:
    """Which of (n, d) normalised rows are very similar to given ones, as faiss's own indices answer
    `range_search`: by cells, in the first principal components.

    A projection makes no distance longer. So whatever is near enough in all d dimensions is so in
    the components too; what is found there is compared in full. Nothing wrong is found, and what
    is missed lies in cells that were not looked into.
    """

    def __init__(self, vectors: np.ndarray, seed: int, keep: Keep = made_anew) -> None:
        """vectors: float16 or float32; they are kept, and not copied as a whole. `keep` is given
        the cells, and which of them each row is in.
        """
        self.vectors = vectors
        (trained,) = keep("cells", partial(_trained, vectors, seed))
        # faiss declares no types of their parts
        self.whole = cast(Any, faiss.deserialize_index(trained))
        self.narrow = cast(Any, faiss.downcast_VectorTransform(self.whole.chain.at(0)))
        self.index = cast(Any, faiss.downcast_index(self.whole.index))
        (self.cell,) = keep("cell-of-each", self._placed)
        for rows, part in _narrowed(vectors, self.narrow):
            self.index.add_core(
                len(part), faiss.swig_ptr(part), None, faiss.swig_ptr(self.cell[rows]), None
            )
        self.index.nprobe = 1

    def _placed(self) -> tuple[np.ndarray]:
        """(n,) the cell of each row."""
        cell = np.empty(len(self.vectors), np.int64)
        for rows, part in _narrowed(self.vectors, self.narrow):
            cell[rows] = self.index.quantizer.search(part, 1)[1].ravel()
        return (cell,)

    def range_search(
        self, rows: np.ndarray, least: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(m + 1,) where each of (m, d) rows' answers begin; their similarities, all above `least`,
        and numbers.
        """
        radius = 2 - 2 * least + SLACK
        limits, _, found = self.index.range_search(self.narrow.apply(rows), radius)
        ends = limits.astype(np.int64)
        of = np.repeat(np.arange(len(rows)), ends[1:] - ends[:-1])
        similarity = np.empty(len(found), np.float32)
        for start in range(0, len(found), BLOCK):
            part = slice(start, start + BLOCK)
            near = self.vectors[found[part]].astype(np.float32)
            similarity[part] = np.einsum("nd,nd->n", rows[of[part]], near)
        close = similarity > least
        counts = np.bincount(of[close], minlength=len(rows))
        return np.concatenate([[0], np.cumsum(counts)]), similarity[close], found[close]


def close_rows(
    vectors: np.ndarray, least: float, recall: float, seed: int, keep: Keep = made_anew
) -> CloseRows:
    """Looks into as few cells as find `recall` of what is above `least`, by the mean over those of
    a sample of rows that have any such beside themselves. `keep` is given this sample, how many
    each of it has, and the number of cells, too.
    """
    index = CloseRows(vectors, seed, keep)
    (queries,) = keep("with-copies", lambda: (_with_copies(index, least, seed),))
    (true,) = keep("their-copies", lambda: (_counted(vectors, queries, least),))
    (looked,) = keep("looked", partial(_enough, index, queries, true, least, recall))
    index.index.nprobe = int(looked)
    return index


def _counted(vectors: np.ndarray, queries: np.ndarray, least: float) -> np.ndarray:
    """(p,) how many of all rows are as near as `least` to each of (p, d) queries."""
    found = np.zeros(len(queries), np.int64)
    for start in range(0, len(vectors), BLOCK):
        near = queries @ vectors[start : start + BLOCK].astype(np.float32).T > least
        found += near.sum(axis=1)
    return found


def _enough(
    index: CloseRows, queries: np.ndarray, true: np.ndarray, least: float, recall: float
) -> tuple[np.ndarray]:
    """The number of cells that find the share `recall` of the `true` rows near each query."""
    index.index.nprobe = 1  # the queries were found in many
    while len(queries) and index.index.nprobe < index.index.nlist:
        limits, _, _ = index.range_search(queries, least)
        if np.mean((np.diff(limits) - 1) / (true - 1)) >= recall:
            break
        index.index.nprobe += index.index.nprobe // 4 + 1
    return (np.array(index.index.nprobe),)


def _with_copies(index: CloseRows, least: float, seed: int) -> np.ndarray:
    """(p, d) float32 rows, `PROBES` at most, that have others as near as `least`, so far as a look
    into many cells for a sample shows: few rows have any, and a recall over a handful of them says
    little. The sample is not the one that the cells were learned from, which lies nearer to their
    centres than others do.
    """
    vectors, found = index.vectors, []
    many = min(len(vectors), LOOKED_AT * PROBES)
    rows = np.random.default_rng((seed, 1)).choice(len(vectors), many, replace=False)
    index.index.nprobe = min(MANY_CELLS, index.index.nlist)
    for start in range(0, many, PROBES):
        block = vectors[rows[start : start + PROBES]].astype(np.float32)
        limits, _, _ = index.range_search(block, least)
        found.append(block[np.diff(limits) > 1])
        if sum(map(len, found)) >= PROBES:
            break
    return np.concatenate(found)[:PROBES]
