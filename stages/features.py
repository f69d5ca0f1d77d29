"""Computes CLIP image and text features of the fetched pairs; an interrupted run goes on at the
next shard.

python stages/features.py --pairs data/pairs.parquet --shards data/shards --out data/features
"""

import _repository  # noqa: F401, I001 — first: it sets the import path

from pathlib import Path

from pipeline.artifacts import fingerprint, resumable_folder
from pipeline.clip.params import BackboneParams
from pipeline.pairs.features import extract_features
from pipeline.params import load_params
from pipeline.stage import parser, progress, run

READS = {"backbone": ("backbone", BackboneParams)}


def main():
    cli = parser(__doc__)
    cli.add_argument("--pairs", type=Path, required=True, help="Parquet: one row per caption")
    cli.add_argument("--shards", type=Path, required=True, help="folder of picture shards")
    cli.add_argument(
        "--out", type=Path, required=True, help="folder for NNNNN.parquet: key, image, text"
    )
    args = cli.parse_args()
    p = load_params(args.params, READS)
    with resumable_folder(
        args.out, fingerprint(p.backbone, args.pairs, args.shards, p.backbone.path)
    ) as work:
        pairs, dim = extract_features(
            args.pairs, args.shards, work, Path(p.backbone.path), progress
        )
    return f"{pairs} pairs, {dim} dimensions", {"pairs": pairs, "dimensions": dim}, args.metrics


if __name__ == "__main__":
    run(main)
