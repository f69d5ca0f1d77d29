"""Makes one row per caption: shard, size, SHA-256 of its picture, and what went wrong if anything
did; an interrupted run goes on at the next shard.

    python stages/index.py --captions data/captions.parquet --shards data/shards \\
        --out data/pairs.parquet
"""

import _repository  # noqa: F401, I001 — first: it sets the import path

from pathlib import Path

import polars as pl

from pipeline.artifacts import fingerprint, kept_parts
from pipeline.errors import InputError
from pipeline.pairs.index import failure_reasons, index_pairs
from pipeline.pairs.params import Share
from pipeline.pairs.reading import write_pairs
from pipeline.params import load_params
from pipeline.stage import output, parser, progress, run

READS = {"min_success": ("download.min_success", Share)}  # a check; it decides nothing else


def main():
    cli = parser(__doc__)
    cli.add_argument("--captions", type=Path, required=True, help="Parquet: key, caption, url")
    cli.add_argument(
        "--shards", type=Path, required=True, help="folder of NNNNN.tar and fetched.parquet"
    )
    cli.add_argument("--out", type=output, required=True, help="Parquet: one row per caption")
    args = cli.parse_args()
    p = load_params(args.params, READS)
    with kept_parts(args.out, fingerprint(None, args.shards)) as work:
        pairs, counts = index_pairs(args.captions, args.shards, progress, work)
        reasons = failure_reasons(pl.from_arrow(pairs))
        success = counts.get("success", 0) / len(pairs)
        if success < p.min_success:
            said = "; ".join(f"{count}× {reason}" for reason, count in list(reasons.items())[:3])
            raise InputError(
                f"{args.shards}: only {success:.1%} of {len(pairs)} links gave a picture, but "
                f"'download.min_success' wants at least {p.min_success:.0%}: {said}. Lower it, or "
                "ask the failed links again (`stages/download.py --retry-failed`)"
            )
        write_pairs(pairs, args.out)
    failures = (
        ", ".join(f"{n} {status}" for status, n in counts.items() if status != "success")
        or "no failures"
    )
    return (
        f"{counts.get('success', 0)} of {len(pairs)} pairs have a whole picture; {failures}",
        {"captions": len(pairs), **counts, "reasons": reasons},
        args.metrics,
    )


if __name__ == "__main__":
    run(main)
