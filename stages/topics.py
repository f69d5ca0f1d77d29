"""Groups captions into semantic topics and lays out their map.

python stages/topics.py --sentences data/sentences --out data/topics.parquet
"""

import _repository  # noqa: F401, I001 — first: it sets the import path

from pathlib import Path

import pyarrow as pa

from pipeline.artifacts import write_table
from pipeline.clustering.params import Topics
from pipeline.clustering.schemas import TOPICS
from pipeline.clustering.sentences import read_sentences
from pipeline.clustering.topics import find_topics
from pipeline.params import Seed, load_params
from pipeline.stage import parser, progress, run

READS = {"seed": ("seed", Seed), "topics": ("topics", Topics)}


def main():
    cli = parser(__doc__)
    cli.add_argument(
        "--sentences", type=Path, required=True, help="folder of sentence embedding shards"
    )
    cli.add_argument(
        "--out", type=Path, required=True, help="Parquet: topic, strength and map place per pair"
    )
    args = cli.parse_args()
    p = load_params(args.params, READS)
    keys, vectors = read_sentences(args.sentences)
    topic, strength, place, counts = find_topics(vectors, p.topics, p.seed, progress)
    # NaN becomes null: not on the map
    x, y = (pa.array(place[:, i], from_pandas=True) for i in (0, 1))
    columns = [keys, topic, strength, x, y]
    write_table(pa.table(columns, names=TOPICS.names), args.out, TOPICS)
    words = (
        f"{counts['topics']} topics of {counts['captions']} captions ({counts['distinct']} differ, "
        f"{counts['fitted']} clustered, neighbours at recall {counts['recall']:.3f}); "
        f"{counts['outliers']} outliers, coverage {counts['coverage']:.1%}"
    )
    if "stability" in counts:
        words += f"; ARI with other seeds {counts['stability']:.2f}"
    return words, counts, args.metrics


if __name__ == "__main__":
    run(main)
