"""Obtains the caption–URL table of the source, checks every row and gives each a key.

    python stages/captions.py --out data/captions.parquet
"""

import _repository  # noqa: F401, I001 — first: it sets the import path

from pathlib import Path

from pipeline.artifacts import write_table
from pipeline.pairs.schemas import CAPTIONS
from pipeline.params import load_params
from pipeline.sources.params import Source
from pipeline.sources.table import read_captions
from pipeline.stage import parser, run

READS = {"source": ("source", Source)}


def main():
    cli = parser(__doc__)
    cli.add_argument("--out", type=Path, required=True, help="Parquet: key, caption, url")
    args = cli.parse_args()
    p = load_params(args.params, READS)
    table, counts = read_captions(p.source)
    write_table(table, args.out, CAPTIONS)
    return f"{counts['captions']} captions; {counts['repeated_rows']} repeated rows and {counts['bad_rows']} bad rows left out", counts, args.metrics


if __name__ == "__main__":
    run(main)
