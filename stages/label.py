"""Finds each topic's word by cluster-wise TF-IDF; it becomes the class name in episodes.

    python stages/label.py --kept data/kept.parquet --topics data/topics.parquet --clusters
    data/clusters.parquet --out data/labels.parquet

Topics that a person merges, renames or drops (`label.edits`) are changed here; everything behind
uses the result.
"""

import _repository  # noqa: F401, I001 — first: it sets the import path

from pathlib import Path

import polars as pl
import pyarrow as pa

from pipeline.artifacts import read_table, write_table
from pipeline.clustering.edits import apply_edits, load_edits
from pipeline.clustering.labels import coherence, count_words, describe_topics
from pipeline.clustering.params import Label
from pipeline.clustering.schemas import CLUSTERS, LABELS, TOPICS
from pipeline.pairs.schemas import KEPT
from pipeline.params import load_params
from pipeline.stage import parser, run

READS = {"label": ("label", Label)}


def main():
    cli = parser(__doc__)
    cli.add_argument("--kept", type=Path, required=True, help="Parquet: captions of the kept pairs")
    cli.add_argument("--topics", type=Path, required=True, help="Parquet: topic per pair")
    cli.add_argument(
        "--clusters",
        type=Path,
        required=True,
        help="Parquet to write: topic per pair, after the edits",
    )
    cli.add_argument("--out", type=Path, required=True, help="Parquet: name and words per topic")
    args = cli.parse_args()
    p = load_params(args.params, READS)
    captions = pl.from_arrow(read_table(args.kept, KEPT, ["key", "caption"]))
    rows = (
        pl.from_arrow(read_table(args.topics, TOPICS, ["key", "topic"]))
        .join(captions, on="key", validate="1:1")
        .sort("key")
    )
    edits, topic, counted = (
        load_edits(p.label.edits),
        rows["topic"].to_numpy(),
        count_words(rows["caption"].to_list(), p.label),
    )
    found = describe_topics(counted, topic, p.label)
    topic, names = apply_edits(topic, [d["name"] for d in found], edits, p.label.edits)
    described = describe_topics(counted, topic, p.label, names)
    write_table(
        pa.table([rows["key"].to_arrow(), topic], names=CLUSTERS.names), args.clusters, CLUSTERS
    )
    write_table(pa.Table.from_pylist(described, schema=LABELS), args.out, LABELS)
    largest = ", ".join(d["name"] for d in sorted(described, key=lambda d: -d["size"])[:8])
    changed = f" ({len(found)} before {p.label.edits})" if len(found) != len(described) else ""
    counts = {
        "found": len(found),
        "named": len(described),
        "coherence": round(coherence(counted, [d["words"] for d in described]), 4),
    }
    return (
        f"{len(described)} topics named{changed}, coherence of their words "
        f"{counts['coherence']:.2f}; the largest: {largest}",
        counts,
        args.metrics,
    )


if __name__ == "__main__":
    run(main)
