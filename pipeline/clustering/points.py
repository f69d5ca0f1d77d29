"""Equal vectors as one point with a weight.

A caption that stands a thousand times on the web is one statement made a thousand times: it counts
a thousand captions where the size of a topic is asked for, and one point where neighbours and
density are. As a thousand points, it would be a cloud of its own, with more neighbours than any
graph has room for, and fall into topics at random.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from hdbscan.hdbscan_ import _tree_to_labels  # what HDBSCAN itself calls; no public way in

from pipeline.clustering.params import Grouping

BLOCK = 65_536  # rows at a time, where a copy of all is not wanted


@dataclass(frozen=True)
class Points:
    """The d distinct ones of n vectors, in the order of their first rows.

    Attributes:
        rows: (d,) the first row of each. point: (n,) which of them each row is. weight: (d,) how
        many rows each is.
    """

    rows: np.ndarray
    point: np.ndarray
    weight: np.ndarray


def distinct(vectors: np.ndarray) -> Points:
    """Finds the rows of (n, d) floats that are equal, by 128 bits of what they hold."""
    factors = np.random.default_rng(0).integers(
        0, 2**64, (vectors.shape[1] * vectors.itemsize // 2, 2), np.uint64
    )
    sums = np.empty((len(vectors), 2), np.uint64)
    for start in range(0, len(vectors), BLOCK):
        rows = vectors[start : start + BLOCK] + vectors.dtype.type(0)  # −0 is 0
        words = np.ascontiguousarray(rows).view(np.uint16).astype(np.uint64)
        sums[start : start + BLOCK] = words @ factors
    first = (
        pl.DataFrame({"a": sums[:, 0], "b": sums[:, 1]})
        .with_row_index("row")
        .select(pl.col("row").min().over("a", "b"))
        .to_series()
        .to_numpy()
    )
    is_first = first == np.arange(len(first))
    point = (np.cumsum(is_first) - 1)[first]
    return Points(np.flatnonzero(is_first), point, np.bincount(point, minlength=is_first.sum()))


def with_copies(tree: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A single linkage tree of d points → the tree of all that they stand for, and the (d,) number
    of the first leaf of each point.

    The copies of a point leave it one by one at the distance at which the point itself joins
    another, so they add to the size of what it belongs to and to nothing else.

    Args:
        tree: (d − 1, 4) left, right, distance, size, as scipy and hdbscan have it. weight: (d,)
        copies of each point, itself among them.
    """
    count, all_of_them = len(weight), int(weight.sum())
    leaf = np.cumsum(weight) - weight
    joins = np.empty(count)
    for side in (0, 1):
        child = tree[:, side].astype(int)
        joins[child[child < count]] = tree[child < count, 2]

    extra = weight - 1
    of = np.repeat(np.arange(count), extra)  # the point of every row of the chains
    row = np.arange(len(of))
    nth = row - np.repeat(np.cumsum(extra) - extra, extra)
    chains = np.stack(
        [
            np.where(nth == 0, leaf[of], all_of_them + row - 1),
            leaf[of] + nth + 1,
            joins[of],
            nth + 2,
        ],
        axis=1,
    )
    top = np.where(extra > 0, all_of_them + np.cumsum(extra) - 1, leaf)  # a point as a subtree
    above = tree.copy()
    for side in (0, 1):
        child = tree[:, side].astype(int)
        above[:, side] = np.where(
            child < count,
            top[np.minimum(child, count - 1)],
            child - count + all_of_them + len(of),
        )
    sizes = np.concatenate([weight, np.zeros(len(tree), weight.dtype)])
    for number, (left, right) in enumerate(tree[:, :2].astype(int).tolist(), count):
        sizes[number] = sizes[left] + sizes[right]
    above[:, 3] = sizes[count:]
    return np.concatenate([chains, above]), leaf


def clusters(
    tree: np.ndarray, weight: np.ndarray, settings: Grouping
) -> tuple[np.ndarray, np.ndarray]:
    """(d,) HDBSCAN's clusters of weighted points, −1 outside, and (d,) membership strengths.

    `topics.min_cluster_size` counts weights.
    """
    tree, leaf = with_copies(tree, weight)
    labels, strength, *_ = _tree_to_labels(
        None, tree, settings.min_cluster_size, settings.selection
    )
    return labels[leaf], strength[leaf]
