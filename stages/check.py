"""Compares filter, topics and domains with the truth that the demo's world was drawn from.

    python stages/check.py --name demo --captions data/captions.parquet --kept data/kept.parquet \\
        --clusters data/clusters.parquet --domains data/domains.parquet \\
        --metrics data/metrics/check_demo.json

Nothing in the chain depends on the result. Worlds without a known truth list no `world.truths`.
"""

import _repository  # noqa: F401, I001 — first: it sets the import path

from pathlib import Path

import polars as pl

from pipeline.artifacts import read_table
from pipeline.clustering.schemas import CLUSTERS, DOMAINS
from pipeline.pairs.schemas import CAPTIONS, KEPT
from pipeline.params import load_params
from pipeline.stage import parser, run
from pipeline.world.check import domain_quality, filter_quality, topic_quality
from pipeline.world.params import Truth
from pipeline.world.schemas import TRUTH

READS = {"truth": ("world.truths.{name}", Truth)}


def main():
    cli = parser(__doc__)
    cli.add_argument("--name", required=True, help="entry of world.truths")
    cli.add_argument("--captions", type=Path, required=True, help="Parquet: URL per key")
    cli.add_argument("--kept", type=Path, required=True, help="Parquet: reason of every rejection")
    cli.add_argument("--clusters", type=Path, required=True, help="Parquet: topic per pair")
    cli.add_argument("--domains", type=Path, required=True, help="Parquet: domain per pair")
    args = cli.parse_args()
    p = load_params(args.params, READS, name=args.name)
    captions = pl.from_arrow(read_table(args.captions, CAPTIONS, ["key", "url"]))
    truth = captions.join(pl.from_arrow(read_table(p.truth.path, TRUTH)), on="url").drop("url")
    figures = filter_quality(pl.from_arrow(read_table(args.kept, KEPT, ["key", "reason"])), truth)
    figures |= topic_quality(pl.from_arrow(read_table(args.clusters, CLUSTERS)), truth)
    figures |= domain_quality(pl.from_arrow(read_table(args.domains, DOMAINS)), truth)
    words = (
        f"wrong captions found with precision {figures['mismatch_precision']:.2f} and recall "
        f"{figures['mismatch_recall']:.2f} "
        f"({figures['mismatched_before']:.1%} wrong before, {figures['mismatched_after']:.1%} "
        "after); "
        f"{figures['topics']} topics cover {figures['coverage']:.1%}, purity "
        f"{figures['purity_by_family']:.2f} by family and {figures['purity_by_name']:.2f} by "
        "name; "
        f"domains agree with styles at NMI {figures['domain_style_nmi']:.2f}"
    )
    return words, {k: round(v, 4) for k, v in figures.items()}, args.metrics


if __name__ == "__main__":
    run(main)
