"""Reads the caption–URL table of the source (fetched first, if `source.obtain` says so), checks
every row and gives each a key.

    python stages/captions.py --out data/captions.parquet
"""

import _repository  # noqa: F401, I001 — first: it sets the import path

from pathlib import Path

from pipeline.artifacts import write_table
from pipeline.pairs.schemas import CAPTIONS
from pipeline.params import load_params
from pipeline.sources.obtain import obtain
from pipeline.sources.params import Source
from pipeline.sources.table import read_captions
from pipeline.stage import output, parser, run

READS = {"source": ("source", Source)}


def main():
    cli = parser(__doc__)
    cli.add_argument("--out", type=output, required=True, help="Parquet: key, caption, url")
    args = cli.parse_args()
    p = load_params(args.params, READS)
    path = Path(p.source.path) / p.source.table
    if p.source.obtain and not path.exists():
        obtain(path, p.source.obtain)
    table, counts = read_captions(p.source)
    write_table(table, args.out, CAPTIONS)
    words = (
        f"{counts['captions']} captions; {counts['repeated_rows']} repeated rows and "
        f"{counts['bad_rows']} bad rows left out, {counts['not_utf8']} read as Windows-1252, "
        f"{counts['mended']} mended"
    )
    return words, counts, args.metrics


if __name__ == "__main__":
    run(main)
