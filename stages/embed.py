"""Embeds the kept captions with a sentence encoder.

python stages/embed.py --kept data/kept.parquet --out data/sentences
"""

import _repository  # noqa: F401, I001 — first: it sets the import path

import os
from pathlib import Path

# a hub name in params.yaml needs HF_HUB_OFFLINE=0 from the user
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from pipeline.artifacts import fingerprint, resumable_folder
from pipeline.clustering.embedding import embed_captions
from pipeline.clustering.params import Embed
from pipeline.params import load_params
from pipeline.stage import parser, progress, run

READS = {"embed": ("embed", Embed)}


def main():
    cli = parser(__doc__)
    cli.add_argument("--kept", type=Path, required=True, help="Parquet: which pairs were kept")
    cli.add_argument(
        "--out", type=Path, required=True, help="folder for NNNNN.parquet: key, embedding"
    )
    args = cli.parse_args()
    p = load_params(args.params, READS)
    with resumable_folder(args.out, fingerprint(p.embed, args.kept)) as work:
        captions, dim = embed_captions(args.kept, work, p.embed.model, progress)
    return (
        f"{captions} captions, {dim} dimensions",
        {"captions": captions, "dimensions": dim},
        args.metrics,
    )


if __name__ == "__main__":
    run(main)
