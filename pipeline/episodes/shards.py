"""Writes tasks to Parquet shards and reads them back, batch after batch, without any other
artifact.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.artifacts import (
    PARQUET,
    from_vectors,
    naming_damage,
    numbered,
    open_table,
    replacing,
    shard_paths,
    to_vectors,
    vector_dim,
)
from pipeline.episodes.schemas import episodes_schema
from pipeline.episodes.tasks import Pool, ReadPictures, Task
from pipeline.stage import workers

# of features and pictures: few enough files for any number of tasks, each quickly made again
SHARD_BYTES = 256e6
VALIDATION = "validation"  # folder of the validation tasks' shards, beside the training tasks'
SIZED_BY = 16  # tasks that a shard's number of tasks is reckoned from


@dataclass(frozen=True)
class Episode:
    """One task as tensors-to-be.

    Attributes:
        names: the K class names.
        support, query: (n, e) and (m, e) image features, float32.
        support_labels, query_labels: (n,) and (m,) class numbers, int64.
        support_pictures, query_pictures: n and m JPEG files, or nothing if they were not asked for.
    """

    number: int
    names: tuple[str, ...]
    support: np.ndarray
    support_labels: np.ndarray
    query: np.ndarray
    query_labels: np.ndarray
    support_pictures: tuple[bytes, ...] = ()
    query_pictures: tuple[bytes, ...] = ()


def task_table(
    number: int, task: Task, pool: Pool, read_pictures: ReadPictures, schema: pa.Schema
) -> pa.Table:
    """The rows of one task: support first, class by class."""
    rows = task.rows
    role = ["support"] * task.support.size + ["query"] * task.query.size
    label = np.concatenate(
        [np.arange(len(picks)).repeat(picks.shape[1]) for picks in (task.support, task.query)]
    ).tolist()
    columns = [
        [number] * len(rows),
        role,
        label,
        [pool.names[task.topics[k]] for k in label],
        [int(task.topics[k]) for k in label],
        pool.domain[rows],
        [pool.keys[r] for r in rows],
        to_vectors(pool.features[rows]),
        read_pictures(rows),
    ]
    return pa.table(
        [
            c if isinstance(c, pa.Array) else pa.array(c, type=f.type)
            for c, f in zip(columns, schema, strict=True)
        ],
        schema=schema,
    )


def tasks_per_shard(tasks: Sequence[Task], pool: Pool, read_pictures: ReadPictures) -> int:
    """As many tasks as make `SHARD_BYTES`, by the size of a few of them."""
    sample = tasks[:: -(-len(tasks) // SIZED_BY)]
    size = sum(
        pool.features[0].size * 2 + len(picture)
        for task in sample
        for picture in read_pictures(task.rows)
    ) / len(sample)
    return max(1, int(SHARD_BYTES / size))


def write_shards(
    tasks: Sequence[Task], pool: Pool, read_pictures: ReadPictures, work: Path, progress
) -> None:
    """Writes work/NNNNN.parquet, one row group per task; shards that are there already stay.

    EPISODE_THREADS (default: number of cores) shards at once, each with one task's pictures in
    memory. Neither changes the files.
    """
    schema, each = (
        episodes_schema(pool.features.shape[1]),
        tasks_per_shard(tasks, pool, read_pictures),
    )

    def write(start: int) -> None:
        out = work / f"{start // each:05d}.parquet"
        if not out.exists():
            # A dictionary would only hash features and pictures, none of which comes twice in a
            # task.
            with (
                replacing(out) as temporary,
                pq.ParquetWriter(
                    temporary,
                    numbered(schema, start // each, len(starts)),
                    **PARQUET,
                    use_dictionary=["role", "name"],
                ) as writer,
            ):
                for number in range(start, min(start + each, len(tasks))):
                    writer.write_table(
                        task_table(number, tasks[number], pool, read_pictures, schema)
                    )

    threads, starts = ThreadPoolExecutor(workers("EPISODE_THREADS")), range(0, len(tasks), each)
    try:
        for _ in progress(threads.map(write, starts), "episodes", total=len(starts)):
            pass
    finally:
        # an error or interruption waits for the shards under way, not for all
        threads.shutdown(cancel_futures=True)


def write_split(
    split: tuple[Sequence[Task], Sequence[Task]],
    pool: Pool,
    read_pictures: ReadPictures,
    work: Path,
    progress,
) -> None:
    """Writes the shards of training tasks to `work`, and those of validation tasks, if there are
    any, to their folder in it.
    """
    for tasks, folder in zip(split, (work, work / VALIDATION), strict=True):
        if tasks:
            folder.mkdir(exist_ok=True)
            write_shards(tasks, pool, read_pictures, folder, progress)


def read_episodes(folder: Path, pictures: bool = False, skip: int = 0) -> Iterator[Episode]:
    """The episodes behind the first `skip`, in order; unless `pictures`, their bytes stay on disk.
    Nothing is read of those that are skipped.

    Raises InputError naming the shard if it is missing, truncated, damaged or of another schema.
    """
    paths = shard_paths(folder)
    dim = vector_dim(paths[0], "image")
    for path in paths:
        file = open_table(path, episodes_schema(dim))
        first, skip = min(skip, file.num_row_groups), max(0, skip - file.num_row_groups)
        for group in range(first, file.num_row_groups):
            with naming_damage(path):
                table = file.read_row_group(
                    group,
                    columns=[
                        "task",
                        "role",
                        "label",
                        "name",
                        "image",
                        *(["picture"] if pictures else []),
                    ],
                )
            role, label = (
                np.array(table["role"].to_pylist()),
                table["label"].to_numpy().astype(np.int64),
            )
            image, name = from_vectors(table["image"]), table["name"].to_pylist()
            names = tuple(name[int(np.argmax(label == k))] for k in range(label.max() + 1))
            s, q = role == "support", role == "query"
            shown: tuple = ()
            if pictures:
                files = np.array(table["picture"].to_pylist(), dtype=object)
                shown = (tuple(files[s]), tuple(files[q]))
            yield Episode(
                table["task"][0].as_py(), names, image[s], label[s], image[q], label[q], *shown
            )


def count_episodes(folder: Path) -> int:
    """How many there are, by the shards' footers."""
    paths = shard_paths(folder)
    schema = episodes_schema(vector_dim(paths[0], "image"))
    return sum(open_table(path, schema).num_row_groups for path in paths)
