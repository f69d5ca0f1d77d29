"""Makes one row per caption: shard, size, SHA-256 of its picture, and what went wrong if anything
did.

python stages/index.py --captions data/captions.parquet --shards data/shards --out
data/pairs.parquet
"""

import _repository  # noqa: F401, I001 — first: it sets the import path

from pathlib import Path

import polars as pl

from pipeline.pairs.index import failure_reasons, index_pairs
from pipeline.pairs.reading import write_pairs
from pipeline.stage import parser, progress, run

READS = {}  # no parameter decides anything here


def main():
    cli = parser(__doc__)
    cli.add_argument("--captions", type=Path, required=True, help="Parquet: key, caption, url")
    cli.add_argument(
        "--shards", type=Path, required=True, help="folder of NNNNN.tar and fetched.parquet"
    )
    cli.add_argument("--out", type=Path, required=True, help="Parquet: one row per caption")
    args = cli.parse_args()
    pairs, counts = index_pairs(args.captions, args.shards, progress)
    write_pairs(pairs, args.out)
    failures = (
        ", ".join(f"{n} {status}" for status, n in counts.items() if status != "success")
        or "no failures"
    )
    return (
        f"{counts.get('success', 0)} of {len(pairs)} pairs have a whole picture; {failures}",
        {"captions": len(pairs), **counts, "reasons": failure_reasons(pl.from_arrow(pairs))},
        args.metrics,
    )


if __name__ == "__main__":
    run(main)
