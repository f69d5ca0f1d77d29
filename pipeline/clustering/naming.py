"""Names that pictures agree with, and topics of one name that become one.

No part of the paper, whose topics are named by Eq 3 alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from pipeline.artifacts import check_usable
from pipeline.clustering.labels import Counted, rank_words, topic_sizes, unique_names
from pipeline.clustering.params import Label
from pipeline.errors import InputError
from pipeline.neighbours import exact_index
from pipeline.pairs.reading import read_image_features

TEMPLATE = "a photo of a {}."  # what learned contexts start from, too
SHOWN = 64  # pictures of a topic that its words are held against
NEARBY = 64  # topics whose pictures a name must not fit

Encode = Callable[[list[str]], np.ndarray]  # n names → (n, d) normalised vectors


def shown_rows(topic: np.ndarray) -> list[np.ndarray]:
    """Up to `SHOWN` rows of every topic, evenly spaced among them; (n,) topics, −1 outside."""
    order = np.argsort(topic, kind="stable")
    bounds = np.searchsorted(topic[order], np.arange(topic.max(initial=-1) + 2))
    found = []
    for start, size in zip(bounds, np.diff(bounds), strict=False):
        count = min(SHOWN, size)
        found.append(order[start + size * np.arange(count) // count])
    return found


def nearby(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """(L, k) the topics whose mean picture is most like each topic's, k = `NEARBY` or all others.

    Args:
        pictures: L arrays (p, e) of some of each topic's image features.
    """
    centres = np.stack([of_topic.mean(axis=0, dtype=np.float32) for of_topic in pictures])
    # opposite features cancel out
    centres /= np.maximum(np.linalg.norm(centres, axis=1, keepdims=True), 1e-12)
    count = min(NEARBY, len(centres) - 1)
    found = exact_index(centres).search(centres, count + 1)[1]
    itself = found == np.arange(len(centres))[:, None]
    itself[~itself.any(axis=1), -1] = True  # of topics with one mean, itself may come too late
    return found[~itself].reshape(len(centres), count)


def told_apart(own: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(C,) how well each of C texts tells pictures from others: the probability that one of (p, C)
    similarities is larger than one of (q, C), ties by half (the area under the ROC curve).
    """
    return (np.sign(own[:, None] - others[None]).mean(axis=(0, 1)) + 1) / 2


def rank_by_pictures(
    ranked: pl.DataFrame, text: np.ndarray, pictures: Sequence[np.ndarray]
) -> pl.DataFrame:
    """Words of topics scored and ordered anew: by how well a word's feature tells the topic's
    pictures from those of its neighbours (`told_apart`), best first; of equal ones, as they came.

    Args:
        ranked: topic, word (its number) and score, as `rank_words` gives them. text: (W, e)
        features of the words by their numbers. pictures: L arrays (p, e) of some of each topic's
        image features.
    """
    near, scores = nearby(pictures), np.empty(len(ranked))
    for (topic,), rows in ranked.with_row_index("row").group_by("topic"):
        words = text[rows["word"].to_numpy()].T
        others = np.concatenate([pictures[n] for n in near[topic]])
        scores[rows["row"].to_numpy()] = told_apart(pictures[topic] @ words, others @ words)
    return ranked.with_columns(score=pl.Series(scores.round(9))).sort(
        "score", descending=True, maintain_order=True
    )


def picture_ranks(
    ranked: pl.DataFrame,
    words: np.ndarray,
    topic: np.ndarray,
    keys: pl.Series,
    settings: Label,
    features: Path,
    backbone: str,
) -> pl.DataFrame:
    """`ranked` with every topic's `label.words` best words before all others, in the order that
    pictures give them (`rank_by_pictures`). In memory are `SHOWN` pictures of each topic and a text
    feature for each word.

    Args:
        words: (W,) that `ranked` has the numbers of. topic, keys: (n,) of the captions. features:
        the folder of feature shards. backbone: its folder.
    """
    from pipeline.clip.backbone import load_backbone, text_features  # here: seconds to import

    best = ranked.group_by("topic", maintain_order=True).head(settings.words)
    used, number = np.unique(best["word"].to_numpy(), return_inverse=True)
    texts = words[used].tolist()
    text = text_features(load_backbone(backbone), [TEMPLATE.format(t) for t in texts]).numpy()
    check_usable(text, texts, backbone)
    rows = shown_rows(topic)
    seen = read_image_features(features, keys[np.concatenate(rows)])
    pictures = np.split(seen, np.cumsum([len(r) for r in rows])[:-1])
    again = rank_by_pictures(best.with_columns(word=pl.Series(number)), text, pictures)
    again = again.with_columns(word=pl.Series(used[again["word"].to_numpy()]))
    return pl.concat([again, ranked.join(best, on=["topic", "word"], how="anti")])


def merge_same(
    names: Sequence[str | None],
    sizes: Sequence[int],
    least: float,
    encode: Encode,
) -> tuple[np.ndarray, list[str | None]]:
    """Makes one of topics that have one name, or names that mean the same.

    Names come in the order of their topics' size; each joins the most similar one before it that
    joined none, if that is similar enough. So nothing is joined by way of a third.

    Args:
        names: L names, None for none: such topics stay as they are. sizes: L sizes. least: cosine
        from which names mean the same; at 1, equal names alone do, and none is encoded.

    Returns:
        (L + 1,) the number that each topic gets, in the order of the first one that it is made of,
        and −1 for −1; the new topics' names, each that of its largest part.

    Raises InputError if one topic is left.
    """
    total: dict[str, int] = {}
    for name, size in zip(names, sizes, strict=True):
        if name is not None:
            total[name] = total.get(name, 0) + size
    by_size = sorted(total, key=lambda name: -total[name])  # stable: the first topic's where equal
    joins = {name: name for name in by_size}
    if least < 1 and by_size:
        vectors, alone = encode(by_size), [0]
        for i in range(1, len(by_size)):
            similarity = vectors[alone] @ vectors[i]
            nearest = int(similarity.argmax())
            if similarity[nearest] >= least:
                joins[by_size[i]] = by_size[alone[nearest]]
            else:
                alone.append(i)
    called = [i if name is None else joins[name] for i, name in enumerate(names)]
    number = {name: i for i, name in enumerate(dict.fromkeys(called))}
    after = [name if isinstance(name, str) else None for name in number]
    if len(after) < 2:
        raise InputError(
            f"'label.merge_same' of {least} makes one of all {len(names)} topics; raise it, or set "
            "it to null"
        )
    return np.array([*map(number.get, called), -1], np.int32), after


def chosen_names(
    counted: Counted,
    topic: np.ndarray,
    settings: Label,
    by_pictures: Callable[[pl.DataFrame], pl.DataFrame],
    encode: Encode,
) -> tuple[np.ndarray, list[str | None] | None]:
    """(n,) topics and their names, where pictures choose or topics of one name become one
    (`label.choose`, `label.merge_same`); None for the names that the words give by themselves.

    Args:
        topic: (n,) of the captions that were counted; −1 outside. by_pictures: `picture_ranks` of
        what `rank_words` gives.

    Raises InputError as `rank_words` and `merge_same` do.
    """
    if settings.choose == "words" and settings.merge_same is None:
        return topic, None
    ranked, sizes = rank_words(counted, topic, settings), topic_sizes(topic).tolist()
    if settings.choose == "pictures":
        ranked = by_pictures(ranked)
    if settings.merge_same is None:
        return topic, list(map(unique_names(ranked, counted.words).get, range(len(sizes))))
    best = dict(ranked.unique("topic", keep="first").select("topic", "word").iter_rows())
    words = counted.words.tolist()
    names = [words[best[row]] if row in best else None for row in range(len(sizes))]
    number, names = merge_same(names, sizes, settings.merge_same, encode)
    return number[topic], names
