"""Clusters captions into topics: kNN graph, UMAP, HDBSCAN; an interrupted run goes on behind the
last of these that was finished, or the last twentieth of UMAP's epochs.

    python stages/topics.py --sentences data/sentences --out data/topics.parquet \\
        --reduced data/reduced.parquet
"""

import _repository  # noqa: F401, I001 — first: it sets the import path

from pathlib import Path

import pyarrow as pa

from pipeline.artifacts import Keep, fingerprint, kept_parts, write_table
from pipeline.clustering.params import Clustering
from pipeline.clustering.reduced import save_clustered
from pipeline.clustering.schemas import TOPICS
from pipeline.clustering.sentences import read_sentences
from pipeline.clustering.topics import find_topics
from pipeline.params import Seed, load_params
from pipeline.stage import output, parser, progress, run

READS = {"seed": ("seed", Seed), "topics": ("topics", Clustering)}


def main():
    cli = parser(__doc__)
    cli.add_argument(
        "--sentences", type=Path, required=True, help="folder of sentence embedding shards"
    )
    cli.add_argument(
        "--out", type=output, required=True, help="Parquet: topic and strength of every pair"
    )
    cli.add_argument(
        "--reduced",
        type=output,
        required=True,
        help="Parquet to write: what was clustered, and into which clusters, for map and stability",
    )
    args = cli.parse_args()
    p = load_params(args.params, READS)
    keys, vectors = read_sentences(args.sentences)
    with kept_parts(args.out, fingerprint(p, args.sentences)) as work:
        found = find_topics(vectors, p.topics, p.seed, progress, Keep(work))
        columns = [keys, found.topic, found.strength]
        write_table(pa.table(columns, names=TOPICS.names), args.out, TOPICS)
        save_clustered(keys, found, args.reduced)
    counts = found.counts
    words = (
        f"{counts['topics']} topics of {counts['captions']} captions ({counts['distinct']} differ, "
        f"{counts['fitted']} clustered, neighbours at recall {counts['recall']:.3f}); "
        f"{counts['outliers']} outliers, coverage {counts['coverage']:.1%}"
    )
    return words, counts, args.metrics


if __name__ == "__main__":
    run(main)
