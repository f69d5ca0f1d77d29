"""Scores every pair and drops noise: poor captions, small pictures, copies, mismatched pairs.
An interrupted run reads no feature again, and its search for copies goes on at its next
twentieth.

    python stages/filter.py --pairs data/pairs.parquet --features data/features \\
        --out data/kept.parquet
"""

import _repository  # noqa: F401, I001 — first: it sets the import path

from pathlib import Path

from pipeline.artifacts import Keep, fingerprint, kept_parts, write_table
from pipeline.pairs.noise import filter_pairs
from pipeline.pairs.params import Filter
from pipeline.pairs.schemas import KEPT
from pipeline.params import load_params
from pipeline.stage import output, parser, run

READS = {"filter": ("filter", Filter)}


def main():
    cli = parser(__doc__)
    cli.add_argument("--pairs", type=Path, required=True, help="Parquet: one row per caption")
    cli.add_argument("--features", type=Path, required=True, help="folder of feature shards")
    cli.add_argument(
        "--out", type=output, required=True, help="Parquet: score, kept, reason per fetched pair"
    )
    args = cli.parse_args()
    p = load_params(args.params, READS)
    with kept_parts(args.out, fingerprint(p, args.pairs, args.features)) as work:
        kept, counts = filter_pairs(args.pairs, args.features, p.filter, Keep(work))
        write_table(kept, args.out, KEPT)
    why = ", ".join(
        f"{n} {reason.replace('_', ' ')}"
        for reason, n in counts.items()
        if reason not in ("pairs", "kept", "least_score")
    )
    return f"{counts['kept']} of {counts['pairs']} pairs kept; dropped: {why}", counts, args.metrics


if __name__ == "__main__":
    run(main)
