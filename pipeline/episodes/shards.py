"""Writes tasks to Parquet shards and reads them back, batch after batch, without any other artifact."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.artifacts import from_vectors, open_table, replacing, shard_paths, to_vectors, vector_dim
from pipeline.episodes.schemas import episodes_schema
from pipeline.episodes.tasks import Pool, Task

TASKS_PER_SHARD = 500


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


def task_table(number: int, task: Task, pool: Pool, pictures: dict[str, bytes], schema: pa.Schema) -> pa.Table:
    """The rows of one task: support first, class by class."""
    rows, role, label = [], [], []
    for part, picks in (("support", task.support), ("query", task.query)):
        for k, of_class in enumerate(picks):
            rows += of_class.tolist()
            role += [part] * len(of_class)
            label += [k] * len(of_class)
    columns = [
        [number] * len(rows), role, label, [pool.names[task.topics[k]] for k in label], [int(task.topics[k]) for k in label],
        pool.domain[rows], [pool.keys[r] for r in rows], to_vectors(pool.features[rows]), [pictures[pool.keys[r]] for r in rows],
    ]
    return pa.table([c if isinstance(c, pa.Array) else pa.array(c, type=f.type) for c, f in zip(columns, schema)], schema=schema)


def write_shards(tasks: Sequence[Task], pool: Pool, pictures: dict[str, bytes], work: Path, progress) -> None:
    """Writes work/NNNNN.parquet, one row group per task; shards that are there already stay."""
    schema = episodes_schema(pool.features.shape[1])
    for shard, start in enumerate(progress(range(0, len(tasks), TASKS_PER_SHARD), "episodes")):
        out = work / f"{shard:05d}.parquet"
        if out.exists():
            continue
        with replacing(out) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
            for number in range(start, min(start + TASKS_PER_SHARD, len(tasks))):
                writer.write_table(task_table(number, tasks[number], pool, pictures, schema))


def read_episodes(folder: Path, pictures: bool = False) -> Iterator[Episode]:
    """All episodes in order; unless `pictures`, their bytes stay on disk.

    Raises InputError naming the shard if it is missing, truncated or of another schema.
    """
    paths = shard_paths(folder)
    dim = vector_dim(paths[0], "image")
    for path in paths:
        file = open_table(path, episodes_schema(dim))
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=["task", "role", "label", "name", "image", *(["picture"] if pictures else [])])
            role, label = np.array(table["role"].to_pylist()), table["label"].to_numpy().astype(np.int64)
            image, name = from_vectors(table["image"]), table["name"].to_pylist()
            names = tuple(name[int(np.argmax(label == k))] for k in range(label.max() + 1))
            s, q = role == "support", role == "query"
            shown = ()
            if pictures:
                files = np.array(table["picture"].to_pylist(), dtype=object)
                shown = (tuple(files[s]), tuple(files[q]))
            yield Episode(table["task"][0].as_py(), names, image[s], label[s], image[q], label[q], *shown)
