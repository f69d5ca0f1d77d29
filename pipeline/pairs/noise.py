"""The noise filter: which pairs are worth learning from, and why the others are not."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import faiss
import numpy as np
import polars as pl
import pyarrow as pa
from scipy.optimize import brentq
from sklearn.mixture import GaussianMixture

from pipeline.artifacts import read_table
from pipeline.engine import mapped
from pipeline.errors import InputError
from pipeline.neighbours import search_index
from pipeline.pairs.params import Filter
from pipeline.pairs.reading import read_features
from pipeline.pairs.schemas import KEPT, PAIRS

# in one piece of work, whatever the engine: the last bits of a product depend on it
QUERY_ROWS = 16_384


def _searcher(image: np.ndarray, text: np.ndarray, count: int) -> Callable[[int], pa.Table]:
    def search(first: int) -> pa.Table:
        side, start = divmod(first, len(image))
        queries, base = ((image, text), (text, image))[side]
        nearest, _ = faiss.knn(
            queries[start : start + QUERY_ROWS],
            base,
            min(count, len(base)),
            faiss.METRIC_INNER_PRODUCT,
        )
        return pa.table({"mean": nearest.mean(axis=1)})

    return search


def neighbourhoods(image: np.ndarray, text: np.ndarray, count: int) -> np.ndarray:
    """(2, n) mean similarity of every picture with the `count` captions nearest to it, and of
    every caption with its pictures.
    """
    firsts = [
        side * len(image) + start for side in (0, 1) for start in range(0, len(image), QUERY_ROWS)
    ]
    found = dict(mapped(partial(_searcher, image, text, count), firsts))
    return np.concatenate([found[first]["mean"].to_numpy() for first in firsts]).reshape(2, -1)


def match_scores(image: np.ndarray, text: np.ndarray, score: str, neighbours: int) -> np.ndarray:
    """(n,) how well each picture and its own caption match.

    `cosine` is their similarity. `csls` takes off how similar the picture is to the captions
    nearest to it and the caption to the pictures nearest to it (cross-domain similarity local
    scaling): a right pair is near the best that either can have, whatever the general level.
    """
    own = np.einsum("nd,nd->n", image, text)
    if score == "cosine":
        return own
    of_image, of_text = neighbourhoods(image, text, neighbours)
    return 2 * own - of_image - of_text


def mixture_crossing(scores: np.ndarray, mismatch: float) -> float:
    """The score at which a pair is a mismatch with probability `mismatch`, under two normal
    distributions fitted to the scores.

    The one with the lower mean is that of the mismatches; the score lies between the two means.

    Raises InputError if the scores do not fall into two such groups: one distribution explains them
    as well (BIC), or `mismatch` is reached nowhere between the means.
    """
    column = scores.astype(np.float64)[:, None]
    mixture, single = (GaussianMixture(n, random_state=0).fit(column) for n in (2, 1))
    low, high = np.sort(mixture.means_.ravel())
    wrong = int(mixture.means_.argmin())

    def excess(score: float) -> float:
        return mixture.predict_proba([[score]])[0, wrong] - mismatch

    if single.bic(column) <= mixture.bic(column) or not excess(low) > 0 > excess(high):
        raise InputError(
            f"the scores do not fall into two groups (means {low:.3f} and {high:.3f}, shares "
            f"{', '.join(f'{w:.0%}' for w in mixture.weights_)}); choose another "
            "'filter.select'"
        )
    return float(brentq(excess, low, high))


def least_score(scores: np.ndarray, settings: Filter) -> float:
    """The score below which a pair is a mismatch."""
    if settings.select == "mixture":
        return mixture_crossing(scores, settings.threshold)
    return (
        settings.threshold
        if settings.select == "threshold"
        else float(np.quantile(scores, settings.threshold))
    )


def near_duplicates(image: np.ndarray, settings: Filter) -> np.ndarray:
    """(n,) True where an earlier row shows (almost) the same picture; the first of each group
    stays.

    Beyond `exact_up_to` rows, only as many cells are searched as hold `recall` of a picture's
    nearest ones.
    """
    repeated = np.zeros(len(image), bool)
    if settings.duplicate_similarity > 1:
        return repeated
    index, _ = search_index(
        image, settings.neighbours, settings.exact_up_to, settings.recall, seed=0
    )
    limits, _, found = index.range_search(image, settings.duplicate_similarity)
    for row in range(len(image)):
        near = found[limits[row] : limits[row + 1]]
        repeated[row] = bool((~repeated[near[near < row]]).any())
    return repeated


def filter_pairs(
    pairs: Path, features: Path, settings: Filter
) -> tuple[pa.Table, dict[str, float]]:
    """Scores every fetched pair and gives the reason of every rejection.

    A pair is judged by the first rule that it fails: caption, picture, duplicate, mismatch.

    Returns:
        The table of `KEPT` in key order, and the counts per reason.
    """
    keys, image, text = read_features(features)
    table = (
        pl.from_arrow(read_table(pairs, PAIRS)).filter(pl.col("status") == "success").sort("key")
    )
    if table["key"].to_list() != keys:
        raise InputError(
            f"{features}: its keys are not those of the fetched pairs in {pairs}; run `dvc repro` "
            "so that both come from one run"
        )
    scores = match_scores(image, text, settings.score, settings.neighbours)
    floor = least_score(scores, settings)
    sides = pl.min_horizontal("width", "height")
    judged = (
        table.with_columns(
            score=pl.Series(scores, dtype=pl.Float32),
            same_file=pl.col("sha256").is_first_distinct().not_(),
            near_copy=pl.Series(near_duplicates(image, settings)),
            words=pl.col("caption").str.split(" ").list.len(),
        )
        .with_columns(
            reason=pl.when(
                (pl.col("words") < settings.min_words)
                | (pl.col("caption").str.len_chars() < settings.min_characters)
            )
            .then(pl.lit("short caption"))
            .when(pl.col("caption").str.len_chars() > settings.max_characters)
            .then(pl.lit("long caption"))
            .when(sides < settings.min_side)
            .then(pl.lit("small picture"))
            .when(pl.max_horizontal("width", "height") > settings.max_aspect * sides)
            .then(pl.lit("long picture"))
            .when("same_file")
            .then(pl.lit("same file"))
            .when("near_copy")
            .then(pl.lit("near duplicate"))
            .when(pl.col("score") < floor)
            .then(pl.lit("mismatch"))
            .otherwise(pl.lit(""))
        )
        .with_columns(kept=pl.col("reason") == "")
    )
    counts = {
        "pairs": len(judged),
        "kept": int(judged["kept"].sum()),
        "least_score": round(floor, 4),
    }
    reasons = judged.filter(~pl.col("kept")).group_by("reason").len().sort("reason")
    counts |= {reason.replace(" ", "_"): n for reason, n in reasons.iter_rows()}
    if not counts["kept"]:
        raise InputError(
            f"{pairs}: the noise filter left none of {len(judged)} pairs; lower "
            f"'filter.threshold' (scores here reach from {scores.min():.3f} to "
            f"{scores.max():.3f})"
        )
    return judged.select(KEPT.names).to_arrow(), counts
