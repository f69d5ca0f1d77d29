"""Embeds the kept captions with a sentence encoder.

python stages/embed.py --kept data/kept.parquet --out data/sentences
"""

import _repository  # noqa: F401, I001 — first: it sets the import path

import os
from pathlib import Path

# a hub name in params.yaml needs HF_HUB_OFFLINE=0 from the user
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from pipeline.artifacts import fingerprint, resumable_folder
from pipeline.clustering.embedding import embed_captions, model_path
from pipeline.clustering.params import Embed
from pipeline.params import load_params
from pipeline.stage import output, parser, progress, run, warn

READS = {"embed": ("embed", Embed)}
NOTABLE = 0.01  # share of captions that the encoder does not know, to be warned of


def warn_of_unread(counts: dict[str, int], model: str) -> None:
    captions = counts["captions"] + counts["without_vector"]
    if max(counts["unknown"], counts["coinciding"]) >= NOTABLE * captions:
        warn(
            f"the encoder '{model}' does not know the script of {counts['unknown'] / captions:.1%} "
            f"of the captions, and {counts['coinciding'] / captions:.1%} have the same vector as "
            "captions that say something else; such captions cannot be told apart: set "
            "'embed.model' to an encoder of their language (docs/languages.md)"
        )


def main():
    cli = parser(__doc__)
    cli.add_argument("--kept", type=Path, required=True, help="Parquet: which pairs were kept")
    cli.add_argument(
        "--out", type=output, required=True, help="folder for NNNNN.parquet: key, embedding"
    )
    args = cli.parse_args()
    p = load_params(args.params, READS)
    inputs = (args.kept, model_path(p.embed.model))
    with resumable_folder(args.out, fingerprint(p.embed, *inputs)) as work:
        counts = embed_captions(args.kept, work, p.embed, progress)
    warn_of_unread(counts, p.embed.model)
    words = (
        f"{counts['captions']} captions, {counts['distinct']} of them differ to the encoder, "
        f"{counts['dimensions']} dimensions"
    )
    if counts["without_vector"]:
        words += f"; {counts['without_vector']} left out, as their vector is zero or not finite"
    return words, counts, args.metrics


if __name__ == "__main__":
    run(main)
