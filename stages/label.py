"""Finds each topic's word by cluster-wise TF-IDF; it becomes the class name in episodes.

    python stages/label.py --kept data/kept.parquet --topics data/topics.parquet \\
        --features data/features --clusters data/clusters.parquet --out data/labels.parquet

Of its best words, pictures may choose (`label.choose`), for which CLIP features are read. Topics
of one name become one if `label.merge_same` says so, and those that a person merges, renames or
drops (`label.edits`) are changed here, last; everything behind uses the result.
"""

import _repository  # noqa: F401, I001 — first: it sets the import path

import argparse
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from pipeline.artifacts import read_table, write_table
from pipeline.clustering.edits import Edits, apply_edits, handle, load_edits
from pipeline.clustering.labels import (
    Counted,
    coherence,
    count_words,
    describe_topics,
    topic_sizes,
    topic_sums,
)
from pipeline.clustering.naming import chosen_names, picture_ranks
from pipeline.clustering.params import Embed, Label
from pipeline.clustering.schemas import CLUSTERS, LABELS, TOPICS
from pipeline.clustering.words import what_to_set
from pipeline.clip.params import BackboneParams
from pipeline.errors import InputError
from pipeline.pairs.schemas import KEPT
from pipeline.params import load_params
from pipeline.stage import output, parser, progress, run, warn

READS = {
    "label": ("label", Label),
    "backbone": ("backbone", BackboneParams),
    "embed": ("embed", Embed),
}
LISTED = 10  # topics without a name that are told of one by one


def warn_of_unnamed(found: list[dict], words: np.ndarray, edits: Edits, settings: Label) -> None:
    """Says which of the topics that were found have no name, by what they are called in the file of
    edits, and what may give them one.

    Args:
        words: (L,) of all their captions.
    """
    edited = {*edits.rename, *edits.drop, *(m for group in edits.merge.values() for m in group)}
    without = [
        (called, d["size"])
        for d in found
        if d["name"] is None and (called := handle(None, d["topic"])) not in edited
    ]
    shown = ", ".join(f"{called} ({size} captions)" for called, size in without[:LISTED])
    more = f" and {len(without) - LISTED} more" if len(without) > LISTED else ""
    remedy = (
        "of two topics, Eq 3 scores no word above zero: set 'label.formula' to bertopic, or lower "
        "'topics.min_cluster_size'"
        if settings.formula == "eq3" and len(found) == 2
        else "lower 'label.min_captions', raise 'label.longest_phrase' or 'topics.min_cluster_size'"
    )
    wordless = sum(d["name"] is None and not words[d["topic"]] for d in found)
    if wordless:
        remedy = f"the captions of {wordless} hold no word at all, for the others {remedy}"
    warn(
        f"{len(without)} of {len(found)} topics have no word of their own that could name them, so "
        f"they are no classes of tasks: {shown}{more}; {remedy}, or name them under 'rename' in "
        f"{settings.edits}"
    )


def name_topics(
    counted: Counted, topic: np.ndarray, keys: pl.Series, p, features: Path | None
) -> tuple[np.ndarray, list[str | None] | None]:
    """`chosen_names` with the pictures in `features` and the encoder of the captions."""

    def by_pictures(ranked: pl.DataFrame) -> pl.DataFrame:
        if features is None:
            raise InputError(
                "parameter 'label.choose' is 'pictures': --features says where theirs are"
            )
        settings, backbone = p.label, p.backbone.path
        return picture_ranks(ranked, counted.words, topic, keys, settings, features, backbone)

    def encode(names: list[str]) -> np.ndarray:
        from pipeline.clustering.embedding import text_vectors  # here: seconds to import

        return text_vectors(p.embed)(names)

    return chosen_names(counted, topic, p.label, by_pictures, encode)


def arguments() -> argparse.Namespace:
    cli = parser(__doc__)
    cli.add_argument("--kept", type=Path, required=True, help="Parquet: captions of the kept pairs")
    cli.add_argument("--topics", type=Path, required=True, help="Parquet: topic per pair")
    cli.add_argument(
        "--features", type=Path, help="folder of feature shards, read where pictures choose names"
    )
    cli.add_argument(
        "--clusters",
        type=output,
        required=True,
        help="Parquet to write: topic per pair, after the edits",
    )
    cli.add_argument("--out", type=output, required=True, help="Parquet: name and words per topic")
    return cli.parse_args()


def in_words(found: list[dict], described: list[dict], counts: dict[str, float], p) -> str:
    """How many of the topics have a name now, and how many there were before the edits."""
    named = sum(d["name"] is not None for d in described)
    changed = f" ({len(found)} before {p.label.edits})" if len(found) != len(described) else ""
    words = f"{named} of {len(described)} topics named{changed}"
    if counts.get("merged"):
        words += f"; {counts['found']} were found, and {counts['merged']} joined one of their name"
    if "coherence" in counts:
        words += f", coherence of their words {counts['coherence']:.2f}"
    return words


def main():
    args = arguments()
    p = load_params(args.params, READS)
    captions = pl.from_arrow(read_table(args.kept, KEPT, ["key", "caption"]))
    topics = pl.from_arrow(read_table(args.topics, TOPICS, ["key", "topic"]))
    rows = topics.join(captions, on="key", validate="1:1").sort("key")
    texts = rows["caption"].to_list()
    for hint in what_to_set(texts, p.label):
        warn(hint)
    edits, topic = load_edits(p.label.edits), rows["topic"].to_numpy()
    counted = count_words(progress(texts, "words"), p.label)
    clustered = len(topic_sizes(topic))
    topic, chosen = name_topics(counted, topic, rows["key"], p, args.features)
    found = describe_topics(counted, topic, p.label, chosen)
    names_found = [d["name"] for d in found]
    words_found = topic_sums(topic, counted.lengths, len(found))
    topic, names = apply_edits(topic, names_found, edits, p.label.edits)
    described = found if names == names_found else describe_topics(counted, topic, p.label, names)
    clusters = pa.table([rows["key"].to_arrow(), topic], names=CLUSTERS.names)
    write_table(clusters, args.clusters, CLUSTERS)
    write_table(pa.Table.from_pylist(described, schema=LABELS), args.out, LABELS)
    counts: dict[str, float] = {
        "found": clustered,
        "named": sum(name is not None for name in names),
        "unnamed": names.count(None),
    }
    if p.label.merge_same is not None:
        counts["merged"] = clustered - len(found)
    if counts["unnamed"]:
        warn_of_unnamed(found, words_found, edits, p.label)
    measured = coherence(counted, [d["words"] for d in described])
    if measured is not None:
        counts["coherence"] = round(measured, 4)
    by_size = sorted(described, key=lambda d: -d["size"])
    largest = ", ".join([d["name"] for d in by_size if d["name"] is not None][:8]) or "none"
    words = in_words(found, described, counts, p)
    return f"{words}; the largest: {largest}", counts, args.metrics


if __name__ == "__main__":
    run(main)
