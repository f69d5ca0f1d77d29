"""Draws one labelled benchmark for the demo, as a zip of <split>/<domain>/<class>/*.jpg.

python stages/draw_benchmark.py --name animals --out data/world/animals.zip
"""

import _repository  # noqa: F401, I001 — first: it sets the import path


import numpy as np

from pipeline.errors import InputError
from pipeline.params import Seed, load_params
from pipeline.stage import output, parser, progress, run
from pipeline.world.concepts import load_concepts
from pipeline.world.params import DrawnBenchmark
from pipeline.world.sites import choose_classes, draw_benchmark

READS = {"seed": ("seed", Seed), "benchmark": ("world.benchmarks.{name}", DrawnBenchmark)}


def main():
    cli = parser(__doc__)
    cli.add_argument("--name", required=True, help="entry of world.benchmarks to draw")
    cli.add_argument("--out", type=output, required=True, help="the zip to write")
    args = cli.parse_args()
    p = load_params(args.params, READS, name=args.name)
    where = f"world.benchmarks.{args.name}"
    concepts = load_concepts(p.benchmark.concepts)
    families = {c.family for c in concepts}
    for family in p.benchmark.families:
        if family not in families:
            raise InputError(
                f"parameter '{where}.families': no family '{family}' in {p.benchmark.concepts}; "
                f"known: {', '.join(sorted(families))}"
            )
    members = [c for c in concepts if c.family in p.benchmark.families]
    # The benchmark's own stream of random numbers: another one than its neighbours' and the web's.
    seed = p.seed + 1000 + sum(map(ord, args.name))
    chosen = choose_classes(members, p.benchmark.classes, np.random.default_rng(seed), where)
    counts = draw_benchmark(chosen, p.benchmark, seed, args.out, progress)
    return (
        f"{args.name}: {counts['train']} training and {counts['test']} test pictures of "
        f"{counts['classes']} classes",
        counts,
        args.metrics,
    )


if __name__ == "__main__":
    run(main)
