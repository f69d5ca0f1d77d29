"""Splits each topic's pictures into visual domains by k-means on their CLIP features.

    python stages/domains.py --clusters data/clusters.parquet --features data/features \\
        --out data/domains.parquet
"""

import _repository  # noqa: F401, I001 — first: it sets the import path

from pathlib import Path

import polars as pl

from pipeline.artifacts import read_table, write_table
from pipeline.clustering.domains import find_domains
from pipeline.clustering.params import Domains
from pipeline.clustering.schemas import CLUSTERS, DOMAINS
from pipeline.pairs.reading import read_image_features
from pipeline.params import Seed, load_params
from pipeline.stage import output, parser, progress, run

READS = {"seed": ("seed", Seed), "domains": ("domains", Domains)}


def main():
    cli = parser(__doc__)
    cli.add_argument("--clusters", type=Path, required=True, help="Parquet: topic per pair")
    cli.add_argument("--features", type=Path, required=True, help="folder of feature shards")
    cli.add_argument(
        "--out", type=output, required=True, help="Parquet: domain per pair inside a topic"
    )
    args = cli.parse_args()
    p = load_params(args.params, READS)
    topics = pl.from_arrow(read_table(args.clusters, CLUSTERS)).filter(pl.col("topic") >= 0)
    domain, counts = find_domains(
        read_image_features(args.features, topics["key"]),
        topics["topic"].to_numpy(),
        p.domains,
        p.seed,
        progress,
    )
    write_table(topics.with_columns(domain=pl.Series(domain)).to_arrow(), args.out, DOMAINS)
    words = (
        f"{counts['domains']} domains in {topics['topic'].n_unique()} topics; "
        f"{counts['small_domains']} smaller than {p.domains.min_size}; "
        f"{counts['between_share']:.0%} of the variance lies between domains"
    )
    return words, counts, args.metrics


if __name__ == "__main__":
    run(main)
