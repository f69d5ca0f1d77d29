"""Measures how stable the topics are: the mean adjusted Rand index with clusterings of other seeds.

    python stages/stability.py --sentences data/sentences --reduced data/reduced.parquet \\
        --metrics data/metrics/stability.json

Each of `topics.repeats` costs as much as the clustering itself; nothing waits for it.
"""

import _repository  # noqa: F401, I001 — first: it sets the import path

from pathlib import Path

from pipeline.clustering.params import Repeating
from pipeline.clustering.reduced import read_clustered
from pipeline.clustering.topics import of_sample, stability
from pipeline.params import Seed, load_params
from pipeline.stage import parser, progress, run

READS = {"seed": ("seed", Seed), "topics": ("topics", Repeating)}


def main():
    cli = parser(__doc__)
    cli.add_argument(
        "--sentences", type=Path, required=True, help="folder of sentence embedding shards"
    )
    cli.add_argument("--reduced", type=Path, required=True, help="Parquet: what was clustered")
    args = cli.parse_args()
    p = load_params(args.params, READS)
    if not p.topics.repeats:
        return "not measured: 'topics.repeats' is 0", {}, args.metrics
    found = read_clustered(args.sentences, args.reduced)
    settings = of_sample(p.topics, found.share)
    mean = stability(found.vectors, found.weight, found.topic, settings, p.seed, progress)
    return f"ARI with other seeds {mean:.2f}", {"stability": mean}, args.metrics


if __name__ == "__main__":
    run(main)
