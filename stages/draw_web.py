"""Draws one website world for the demo: a caption table, its pictures (some broken), and the truth
about them.

    python stages/draw_web.py --name demo --out data/world/demo

Only the demo has such a stage: the paper profile lists no `world.webs`, and starts from a real
table.
"""

import _repository  # noqa: F401, I001 — first: it sets the import path


import numpy as np

from pipeline.params import Seed, load_params
from pipeline.stage import output, parser, progress, run
from pipeline.world.concepts import load_concepts
from pipeline.world.params import Web
from pipeline.world.sites import choose_classes, draw_web

READS = {"seed": ("seed", Seed), "web": ("world.webs.{name}", Web)}


def main():
    cli = parser(__doc__)
    cli.add_argument("--name", required=True, help="entry of world.webs to draw")
    cli.add_argument(
        "--out",
        type=output,
        required=True,
        help="folder for captions.tsv, pictures.zip, truth.parquet",
    )
    args = cli.parse_args()
    p = load_params(args.params, READS, name=args.name)
    concepts = choose_classes(
        load_concepts(p.web.concepts),
        p.web.classes,
        np.random.default_rng(p.seed),
        f"world.webs.{args.name}",
    )
    counts = draw_web(concepts, p.web, p.seed, args.out, progress)
    words = (
        f"{counts['links']} links to pictures of {len(concepts)} classes in {len(p.web.styles)} "
        f"styles; {counts['mismatched']} wrong captions, {counts['dead']} dead links, "
        f"{counts['truncated']} cut files, {counts['page']} pages"
    )
    return words, counts, args.metrics


if __name__ == "__main__":
    run(main)
