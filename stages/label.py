"""Finds each topic's word by cluster-wise TF-IDF; it becomes the class name in episodes.

    python stages/label.py --kept data/kept.parquet --topics data/topics.parquet --out data/labels.parquet
"""

import _repository  # noqa: F401, I001 — first: it sets the import path

from pathlib import Path

import polars as pl
import pyarrow as pa

from pipeline.artifacts import read_table, write_table
from pipeline.clustering.labels import describe_topics
from pipeline.clustering.params import Label
from pipeline.clustering.schemas import LABELS, TOPICS
from pipeline.pairs.schemas import KEPT
from pipeline.params import load_params
from pipeline.stage import parser, run

READS = {"label": ("label", Label)}


def main():
    cli = parser(__doc__)
    cli.add_argument("--kept", type=Path, required=True, help="Parquet: captions of the kept pairs")
    cli.add_argument("--topics", type=Path, required=True, help="Parquet: topic per pair")
    cli.add_argument("--out", type=Path, required=True, help="Parquet: name and words per topic")
    args = cli.parse_args()
    p = load_params(args.params, READS)
    captions = pl.from_arrow(read_table(args.kept, KEPT, ["key", "caption"]))
    rows = pl.from_arrow(read_table(args.topics, TOPICS, ["key", "topic"])).join(captions, on="key", validate="1:1").sort("key")
    described = describe_topics(rows["caption"].to_list(), rows["topic"].to_numpy(), p.label)
    write_table(pa.Table.from_pylist(described, schema=LABELS), args.out, LABELS)
    largest = ", ".join(d["name"] for d in sorted(described, key=lambda d: -d["size"])[:8])
    return f"{len(described)} topics named; the largest: {largest}", {"named": len(described)}, args.metrics


if __name__ == "__main__":
    run(main)
