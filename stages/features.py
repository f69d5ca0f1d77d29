"""Computes CLIP image and text features of the fetched pairs; an interrupted run goes on at the
next shard.

    python stages/features.py --pairs data/pairs.parquet --shards data/shards \\
        --out data/features
"""

import _repository  # noqa: F401, I001 — first: it sets the import path

from pathlib import Path

from pipeline.artifacts import fingerprint, resumable_folder
from pipeline.clip.backbone import side_read
from pipeline.clip.params import BackboneParams
from pipeline.pairs.features import extract_features, smaller_pictures
from pipeline.params import load_params
from pipeline.stage import output, parser, progress, run, warn

READS = {"backbone": ("backbone", BackboneParams)}


def main():
    cli = parser(__doc__)
    cli.add_argument("--pairs", type=Path, required=True, help="Parquet: one row per caption")
    cli.add_argument("--shards", type=Path, required=True, help="folder of picture shards")
    cli.add_argument(
        "--out", type=output, required=True, help="folder for NNNNN.parquet: key, image, text"
    )
    args = cli.parse_args()
    p = load_params(args.params, READS)
    with resumable_folder(
        args.out, fingerprint(p.backbone, args.pairs, args.shards, p.backbone.path)
    ) as work:
        pairs, dim, unusable = extract_features(
            args.pairs, args.shards, work, Path(p.backbone.path), progress
        )
    words, counts = f"{pairs} pairs, {dim} dimensions", {"pairs": pairs, "dimensions": dim}
    for what, count in unusable.items():
        words += f"; {count} left out as their {what} vector is zero or not finite"
        counts[f"unusable_{what}s"] = count
    side = side_read(Path(p.backbone.path))
    small, pictures = smaller_pictures(args.pairs, side)
    if small:
        warn(
            f"{small} of {pictures} pictures are smaller than the {side} pixels that the backbone "
            "reads, and are enlarged; if they were larger, raise 'download.image_size'"
        )
        counts["smaller_pictures"] = small
    return words, counts, args.metrics


if __name__ == "__main__":
    run(main)
