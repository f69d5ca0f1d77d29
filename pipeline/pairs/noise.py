"""The noise filter: which pairs are worth learning from, and why the others are not."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import faiss
import numpy as np
import polars as pl
import pyarrow as pa
from scipy.optimize import brentq
from sklearn.mixture import GaussianMixture

from pipeline.artifacts import Keep, made_anew, shard_paths
from pipeline.engine import mapped
from pipeline.errors import InputError
from pipeline.neighbours import CloseRows, close_rows, exact_index
from pipeline.pairs.params import Filter, Selection
from pipeline.pairs.reading import Features, left_out, read_features, read_pairs
from pipeline.pairs.schemas import KEPT
from pipeline.stage import progress
from pipeline.words import number_of_words

# in one piece of work, whatever the engine: the last bits of a product depend on it
QUERY_ROWS = 16_384
FEWEST = 4  # scores that say something about their distribution
PARTS = 20  # of the search for copies
COPY_ROWS = 256  # of which all copies are in memory at once
# of the pairs: what the rules look at
USED = ("key", "caption", "status", "width", "height", "sha256")
# Reasons of pairs that the score let pass, and that of those that it did not.
SCORED = ("", "mismatch", "same file", "near duplicate")
# (m,) rows → (m + 1,) where what is near each begins, and (p,) rows that are near
Search = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def _searcher(image: np.ndarray, text: np.ndarray, count: int) -> Callable[[int], pa.Table]:
    def search(first: int) -> pa.Table:
        of_text = first >= len(image)
        queries, base = (text, image) if of_text else (image, text)
        start = first - len(image) * of_text
        nearest, _ = faiss.knn(
            queries[start : start + QUERY_ROWS],
            base,
            min(count, len(base)),
            faiss.METRIC_INNER_PRODUCT,
        )
        return pa.table({"mean": nearest.mean(axis=1)})

    return search


def neighbourhoods(
    image: np.ndarray, text: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """(m,) mean similarity of every picture with the `count` captions nearest to it, and (n,) of
    every caption with its pictures.
    """
    starts = [range(0, len(rows), QUERY_ROWS) for rows in (image, text)]
    firsts = [*starts[0], *(len(image) + start for start in starts[1])]
    found = dict(mapped(partial(_searcher, image, text, count), firsts))
    means = np.concatenate([found[first]["mean"].to_numpy() for first in firsts])
    return means[: len(image)], means[len(image) :]


def match_scores(
    image: np.ndarray,
    text: np.ndarray,
    score: str,
    neighbours: int,
    picture: np.ndarray | None = None,
) -> np.ndarray:
    """(n,) how well each picture and its own caption match.

    `cosine` is their similarity. `csls` takes off how similar the picture is to the captions
    nearest to it and the caption to the pictures nearest to it (cross-domain similarity local
    scaling): a right pair is near the best that either can have, whatever the general level.

    Args:
        image, text: (n, e) features. picture: (n,) the same value for pairs of one picture, which
            is one neighbour, not several; None: every pair has its own.
    """
    own = np.einsum("nd,nd->n", image, text)
    if score == "cosine":
        return own
    picture = np.arange(len(image)) if picture is None else picture
    _, first, which = np.unique(picture, return_index=True, return_inverse=True)
    of_image, of_text = neighbourhoods(image[first], text, neighbours)
    return 2 * own - of_image[which] - of_text


def mixture_crossing(scores: np.ndarray, mismatch: float) -> float:
    """The score at which a pair is a mismatch with probability `mismatch`, under two normal
    distributions fitted to the scores.

    The one with the lower mean is that of the mismatches; the score lies between the two means.

    Raises InputError if the scores do not fall into two such groups: one distribution explains them
    as well (BIC), or `mismatch` is reached nowhere between the means.
    """
    if len(different := np.unique(scores)) < 3:
        raise InputError(
            f"parameter 'filter.select' is mixture, but there are only {len(different)} different "
            "scores, which two distributions cannot be told from; choose threshold or quantile"
        )
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


def least_score(scores: np.ndarray, settings: Selection) -> float:
    """The score below which a pair is a mismatch. Raises InputError if too few scores tell."""
    if settings.select != "threshold" and len(scores) < FEWEST:
        raise InputError(
            f"'filter.select: {settings.select}' judges by how scores are distributed, but there "
            f"are only {len(scores)}; select by 'threshold', or use more pairs"
        )
    if settings.select == "mixture":
        return mixture_crossing(scores, settings.threshold)
    return (
        settings.threshold
        if settings.select == "threshold"
        else float(np.quantile(scores, settings.threshold))
    )


def _index_of(image: np.ndarray, settings: Filter, keep: Keep) -> faiss.Index | CloseRows:
    if len(image) > settings.exact_up_to:
        return close_rows(image, settings.duplicate_similarity, settings.recall, 0, keep)
    return exact_index(image.astype(np.float32))


def near_duplicates(image: np.ndarray, settings: Filter, keep: Keep = made_anew) -> np.ndarray:
    """(n,) True where an earlier row that stays shows (almost) the same picture; the first of each
    group stays.

    Beyond `exact_up_to` rows, only as many cells are searched as find `recall` of the copies.
    `keep` is given what is known after each of `PARTS`, and what the cells are made of.
    """
    repeated = np.zeros(len(image), bool)
    if settings.duplicate_similarity > 1 or not len(image):
        return repeated
    index = cache(partial(_index_of, image, settings, keep))  # made when it is needed

    def search(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        queries = image[rows].astype(np.float32)
        limits, _, found = index().range_search(queries, settings.duplicate_similarity)
        return limits.astype(np.int64), found.astype(np.int64)  # faiss's empty ones are floats

    order = cache(lambda: _by_cell(index()))
    paired = _paired(len(image), search, order, keep)
    parts = np.array_split(np.arange(0, len(image), COPY_ROWS), PARTS)
    for number, starts in enumerate(progress(parts, "copies")):
        (repeated,) = keep(f"copies-{number}", partial(_repeat, repeated, starts, paired, search))
    return repeated


def _by_cell(index: faiss.Index | CloseRows) -> np.ndarray:
    """All rows, those of a cell together: what they are compared with is then in the cache, where
    in their own order each comes to another cell, which at a million rows is most of the time.
    """
    if isinstance(index, CloseRows):
        return np.argsort(index.cell, kind="stable")
    return np.arange(index.ntotal)


def _paired(n: int, search: Search, order: Callable[[], np.ndarray], keep: Keep) -> np.ndarray:
    """(n,) True for every row that is near another; for a few others, too, where the cells find it
    from the other's side alone.

    What an earlier one of the `order` has found is not searched, so that a picture that is there
    thousands of times is compared with all of them a few times.
    """
    paired = np.zeros(n, bool)

    def find(paired: np.ndarray, part: int) -> tuple[np.ndarray]:
        rows = np.array_split(order(), PARTS)[part]
        for start in range(0, len(rows), COPY_ROWS):
            block = rows[start : start + COPY_ROWS]
            block = block[~paired[block]]
            limits, found = search(block)
            of = np.repeat(block, np.diff(limits))
            other = of != found
            paired[of[other]] = paired[found[other]] = True
        return (paired,)

    for part in progress(range(PARTS), "pictures like others"):
        (paired,) = keep(f"paired-{part}", partial(find, paired, part))
    return paired


def _repeat(
    repeated: np.ndarray, starts: np.ndarray, paired: np.ndarray, search: Search
) -> tuple[np.ndarray]:
    """`repeated` with what the `paired` rows of some blocks repeat. Copies that are known by then
    are not searched.
    """
    for start in starts:
        block = slice(start, start + COPY_ROWS)
        rows = start + np.flatnonzero(paired[block] & ~repeated[block])
        limits, found = search(rows)
        for place, row in enumerate(rows):
            if not repeated[row]:
                near = found[limits[place] : limits[place + 1]]
                repeated[near[near > row]] = True
    return (repeated,)


def copies(
    passing: pl.DataFrame, image: np.ndarray, settings: Filter, keep: Keep = made_anew
) -> pl.DataFrame:
    """`passing` with `same_file` and `near_copy`: whether a row's picture is the same file as one
    with a better caption, or else (almost) looks like one.

    Of copies, the picture stays whose best caption has the highest score, with all its captions:
    these are no copies of one another, unless they are the same.

    Args:
        passing: key, caption, picture, sha256, score, and `row`, the place of its features in
            `image`.
    """
    pictures = passing.sort("score", "key", descending=[True, False]).unique(
        "picture", keep="first", maintain_order=True
    )
    pictures = pictures.with_columns(same_file=pl.col("sha256").is_first_distinct().not_())
    files = pictures.filter(~pl.col("same_file"))
    near = near_duplicates(image[files["row"].to_numpy()], settings, keep)
    found = pictures.select("picture", "same_file").join(
        files.select("picture", near_copy=pl.Series(near, dtype=pl.Boolean)),
        on="picture",
        how="left",
    )
    repeated = pl.struct("picture", "caption").is_first_distinct().not_()
    return passing.join(found, on="picture", maintain_order="left").with_columns(
        pl.col("near_copy").fill_null(False), same_file=pl.col("same_file") | repeated
    )


def _scores(found: Features, picture: pl.Series, settings: Filter) -> np.ndarray:
    """(n,) how well pictures and captions match; picture: their names."""
    if found.text is None:
        return found.own
    return match_scores(
        found.image.astype(np.float32),
        found.text.astype(np.float32),
        settings.score,
        settings.neighbours,
        picture.rank("dense").to_numpy(),
    )


def filter_pairs(
    pairs: Path, features: Path, settings: Filter, keep: Keep = made_anew
) -> tuple[pa.Table, dict[str, float]]:
    """Scores every fetched pair and gives the reason of every rejection.

    `keep` is given what takes long: features as they are read, scores, and the search for copies.

    A pair is judged by the first rule that it fails: features, caption, picture, mismatch, copy. So
    no pair is lost to a copy that is lost itself.

    Returns:
        The table of `KEPT` in key order, and the counts per reason.
    """
    found = read_features(features, settings.score != "cosine", keep)
    table = read_pairs(pairs, USED).filter(pl.col("status") == "success").sort("key")
    place = pl.DataFrame({"key": found.keys, "row": np.arange(len(found.keys))})
    whole = table.join(place, on="key", how="semi", maintain_order="left")
    unusable = set().union(*(k for p in shard_paths(features) for k in left_out(p).values()))
    lacking = table.join(place, on="key", how="anti")["key"]
    if not whole["key"].equals(found.keys) or set(lacking) != unusable:
        raise InputError(
            f"{features}: its keys are not those of the fetched pairs in {pairs}; run `dvc repro` "
            "so that both come from one run"
        )
    if not len(found.keys):
        raise InputError(
            f"{features}: no pair has a feature that is finite and not zero; is it the right "
            "backbone?"
        )
    (scores,) = keep("scores", lambda: (_scores(found, whole["picture"], settings),))
    floor = least_score(scores, settings)
    place = place.with_columns(score=pl.Series(scores, dtype=pl.Float32))
    scored = table.join(place, on="key", how="left", maintain_order="left")
    judged = _judged(scored, floor, settings)
    passing = judged.filter(pl.col("reason") == "")
    repeats = copies(passing, found.image, settings, keep).select("key", "same_file", "near_copy")
    copied = (
        pl.when("same_file")
        .then(pl.lit("same file"))
        .when("near_copy")
        .then(pl.lit("near duplicate"))
    )
    judged = judged.join(repeats, on="key", how="left", maintain_order="left")
    judged = judged.with_columns(reason=copied.otherwise("reason"))
    judged = judged.with_columns(kept=pl.col("reason") == "")
    return judged.select(KEPT.names).to_arrow(), _counts(judged, floor, pairs)


def _judged(table: pl.DataFrame, floor: float, settings: Filter) -> pl.DataFrame:
    """The table with the `reason` for which a pair is dropped, whatever the others are; "" for
    none.
    """
    sides, longer = pl.min_horizontal("width", "height"), pl.max_horizontal("width", "height")
    length = pl.col("caption").str.len_chars()
    words = number_of_words(table["caption"])
    rules = {
        "unusable features": pl.col("score").is_null(),
        "short caption": pl.lit(words < settings.min_words) | (length < settings.min_characters),
        "long caption": length > settings.max_characters,
        "small picture": sides < settings.min_side,
        "long picture": longer > settings.max_aspect * sides,
        "mismatch": pl.col("score") < floor,
    }
    reason = pl.lit("")
    for name, broken in reversed(rules.items()):
        reason = pl.when(broken).then(pl.lit(name)).otherwise(reason)
    return table.with_columns(reason=reason)


def _counts(judged: pl.DataFrame, floor: float, pairs: Path) -> dict[str, float]:
    """Raises InputError saying which rules dropped them if no pair is kept."""
    counts = {
        "pairs": len(judged),
        "kept": int(judged["kept"].sum()),
        "least_score": round(floor, 4),
    }
    reasons = judged.filter(~pl.col("kept")).group_by("reason").len().sort("reason")
    counts |= {reason.replace(" ", "_"): n for reason, n in reasons.iter_rows()}
    if not counts["kept"]:
        why = ", ".join(f"{n} {reason}" for reason, n in reasons.iter_rows())
        remedy = "mend the captions or change the rules under 'filter'"
        if "mismatch" in counts:
            scores = judged.filter(pl.col("reason") == "mismatch")["score"]
            remedy = (
                f"lower 'filter.threshold' (the least score is {floor:.3f}; those of mismatches "
                f"reach from {scores.min():.3f} to {scores.max():.3f})"
            )
        raise InputError(
            f"{pairs}: the noise filter left none of {len(judged)} pairs ({why}); {remedy}"
        )
    return counts
