"""Builds meta-training tasks from a labelled dataset: what supervised meta-learning learns from
(Table 6, row 4).

    python stages/labelled_episodes.py --name supervised --labelled data/labelled/supervised \\
        --out data/episodes/supervised

Speed is set by the environment: EPISODE_THREADS (default: number of cores) shards are written at
once.
"""

import _repository  # noqa: F401, I001 — first: it sets the import path

from pathlib import Path

from pipeline.artifacts import fingerprint, resumable_folder
from pipeline.benchmarks.labelled import labelled_pictures, labelled_pool
from pipeline.episodes.params import Episodes, Share, Shots, TaskCount, Ways
from pipeline.episodes.shards import write_split
from pipeline.episodes.tasks import HeldOut, draw_split, drawing_of, rows_of
from pipeline.params import Seed, load_params
from pipeline.stage import output, parser, progress, run, seed_number

READS = {
    "seed": ("seed", Seed),
    "meta_seed": ("meta_seed", Seed),
    "held_out_topics": ("held_out_topics", Share),
    "validation_tasks": ("validation_tasks", TaskCount),
    "ways": ("ways", Ways),
    "support_shots": ("support_shots", Shots),
    "query_shots": ("query_shots", Shots),
    "episodes": ("{table}.{name}.episodes", Episodes),
}


def main():
    cli = parser(__doc__)
    cli.add_argument(
        "--table",
        default="labelled",
        help="table of params.yaml (default: %(default)s; studies have their own)",
    )
    cli.add_argument("--name", required=True, help="entry of that table")
    cli.add_argument("--labelled", type=Path, required=True, help="folder of the dataset's shards")
    cli.add_argument("--out", type=output, required=True, help="folder for the episode shards")
    cli.add_argument(
        "--seed",
        type=seed_number,
        help=(
            "of the training tasks, instead of the parameter `meta_seed` (studies repeat a run "
            "with others)"
        ),
    )
    args = cli.parse_args()
    p = load_params(args.params, READS, table=args.table, name=args.name)
    seed = p.meta_seed if args.seed is None else args.seed
    pool = labelled_pool(args.labelled)
    # Without a domain shift, a dataset in one folder per class is enough.
    least_domains = 2 if p.episodes.support == "one_domain" else 1
    wanted = drawing_of(p.episodes, p.ways, p.support_shots, p.query_shots, seed, least_domains)
    split = draw_split(pool, wanted, HeldOut(p.held_out_topics, p.validation_tasks, p.seed))
    tasks, validation = split
    with resumable_folder(args.out, fingerprint((p, args.name, seed), args.labelled)) as work:
        write_split(split, pool, labelled_pictures(args.labelled), work, progress)
    counts = {
        "tasks": len(tasks),
        "validation_tasks": len(validation),
        "classes": len(pool.names),
        "pictures": len(rows_of([*tasks, *validation])),
    }
    words = (
        f"{args.name}: {len(tasks)} {p.ways}-way tasks from {len(pool.names)} labelled classes, "
        f"{len(validation)} for validation, {counts['pictures']} pictures"
    )
    return words, counts, args.metrics


if __name__ == "__main__":
    run(main)
