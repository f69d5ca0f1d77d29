"""Lays out the map of the captions that were clustered.

    python stages/map.py --sentences data/sentences --reduced data/reduced.parquet \\
        --out data/map.parquet
"""

import _repository  # noqa: F401, I001 — first: it sets the import path

from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.artifacts import write_table
from pipeline.clustering.params import Mapping
from pipeline.clustering.reduced import read_clustered
from pipeline.clustering.schemas import MAP
from pipeline.clustering.topics import lay_out
from pipeline.params import Seed, load_params
from pipeline.stage import output, parser, run

READS = {"seed": ("seed", Seed), "topics": ("topics", Mapping)}


def main():
    cli = parser(__doc__)
    cli.add_argument(
        "--sentences", type=Path, required=True, help="folder of sentence embedding shards"
    )
    cli.add_argument("--reduced", type=Path, required=True, help="Parquet: what was clustered")
    cli.add_argument("--out", type=output, required=True, help="Parquet: key, x, y")
    args = cli.parse_args()
    p = load_params(args.params, READS)
    found = read_clustered(args.sentences, args.reduced)
    shown, place = lay_out(found.vectors, found.reduced, p.topics, p.seed)
    places = np.full((len(found.vectors) + 1, 2), np.nan, np.float32)  # the last: of no sample
    places[shown] = place
    x, y = places[found.of].T
    there = np.flatnonzero(~np.isnan(x))
    columns = [found.keys.take(pa.array(there)), x[there], y[there]]
    write_table(pa.table(columns, names=MAP.names), args.out, MAP)
    return f"{len(there)} captions on the map", {"shown": len(there)}, args.metrics


if __name__ == "__main__":
    run(main)
