"""Builds meta-training tasks: support pictures from one domain per topic, query pictures from all.
An interrupted run goes on with the tasks that it drew, at the next shard.

    python stages/episodes.py --name shifted --domains data/domains.parquet \\
        --labels data/labels.parquet --features data/features --pairs data/pairs.parquet \\
        --shards data/shards --out data/episodes/shifted

Speed is set by the environment: EPISODE_THREADS (default: number of cores) shards are written at
once.
"""

import _repository  # noqa: F401, I001 — first: it sets the import path

import argparse
from pathlib import Path

import polars as pl

from pipeline.artifacts import Keep, aside, fingerprint, read_table, resumable_folder
from pipeline.clustering.schemas import DOMAINS, LABELS
from pipeline.episodes.params import Episodes, Share, Shots, TaskCount, Ways
from pipeline.episodes.shards import write_split
from pipeline.episodes.tasks import (
    HeldOut,
    Pool,
    Task,
    draw_split,
    drawing_of,
    each_picture_once,
    rows_of,
)
from pipeline.pairs.reading import locate_pictures, read_image_features, read_pairs
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
    "episodes": ("{table}.{name}", Episodes),
}


def arguments() -> argparse.Namespace:
    cli = parser(__doc__)
    cli.add_argument(
        "--table",
        default="episodes",
        help="table of params.yaml (default: %(default)s; studies have their own)",
    )
    cli.add_argument("--name", required=True, help="entry of that table")
    cli.add_argument(
        "--domains", type=Path, required=True, help="Parquet: topic and domain per pair"
    )
    cli.add_argument("--labels", type=Path, required=True, help="Parquet: name per topic")
    cli.add_argument("--features", type=Path, required=True, help="folder of feature shards")
    cli.add_argument("--pairs", type=Path, required=True, help="Parquet: shard per pair")
    cli.add_argument("--shards", type=Path, required=True, help="folder of picture shards")
    cli.add_argument("--out", type=output, required=True, help="folder for the episode shards")
    cli.add_argument(
        "--seed",
        type=seed_number,
        help=(
            "of the training tasks, instead of the parameter `meta_seed` (studies repeat a run "
            "with others)"
        ),
    )
    return cli.parse_args()


def read_named(domains: Path, pairs: Path, names: list[str | None]) -> pl.DataFrame:
    """Every picture of the topics that have a name, once: with key, topic, domain, picture and
    shard, by key.
    """
    unnamed = [topic for topic, name in enumerate(names) if name is None]  # they are no classes
    return each_picture_once(
        pl.from_arrow(read_table(domains, DOMAINS))
        .filter(pl.col("topic").is_in(unnamed).not_())
        .sort("key")
        .join(read_pairs(pairs, ["key", "shard"]), on="key", how="left", maintain_order="left")
        .with_columns(picture=pl.coalesce("picture", "key"))
    )


def pool_of(table: pl.DataFrame, names: list[str | None], features: Path, keep: Keep) -> Pool:
    return Pool(
        table["topic"].to_numpy(),
        table["domain"].to_numpy(),
        names,
        table["key"].to_list(),
        read_image_features(features, table["key"], keep),
    )


def topics_of(tasks: list[Task]) -> int:
    """How many topics tasks are made of."""
    return len({int(t) for task in tasks for t in task.topics})


def main():
    args = arguments()
    p = load_params(args.params, READS, table=args.table, name=args.name)
    seed = p.meta_seed if args.seed is None else args.seed
    names = read_table(args.labels, LABELS)["name"].to_pylist()
    table = read_named(args.domains, args.pairs, names)
    wanted = drawing_of(p.episodes, p.ways, p.support_shots, p.query_shots, seed)
    held = HeldOut(p.held_out_topics, p.validation_tasks, p.seed)
    inputs = (args.domains, args.labels, args.features, args.pairs, args.shards)
    with resumable_folder(args.out, fingerprint((p, args.name, seed), *inputs)) as work:
        keep = aside(work)
        pool = pool_of(table, names, args.features, keep)
        split = tasks, validation = draw_split(pool, wanted, held, keep)
        shown = rows_of([*tasks, *validation])
        files, shards = table["picture"].to_list(), table["shard"].to_list()
        pictures = locate_pictures(args.shards, files, shards, shown, progress, keep)
        write_split(split, pool, pictures.read, work, progress)
    counts = {
        "tasks": len(tasks),
        "validation_tasks": len(validation),
        "topics_used": topics_of(tasks),
        "topics_held_out": topics_of(validation),
        "topics": len(names),
        "topics_without_name": names.count(None),
        "pictures": len(shown),
    }
    words = (
        f"{args.name}: {len(tasks)} {p.ways}-way tasks from {counts['topics_used']} of "
        f"{len(names)} topics, {len(validation)} for validation from "
        f"{counts['topics_held_out']} others, {len(shown)} pictures"
    )
    if unnamed := counts["topics_without_name"]:
        words += f"; {unnamed} topics have no name and are left out"
    return words, counts, args.metrics


if __name__ == "__main__":
    run(main)
