"""A labelled dataset to draw tasks from: its classes are the topics, folders above them the domains."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from pipeline.artifacts import from_vectors, read_shards, shard_paths, to_vectors, vector_dim, write_table
from pipeline.benchmarks.reader import Pictures
from pipeline.benchmarks.schemas import labelled_schema
from pipeline.clip.backbone import Backbone, image_features, open_picture
from pipeline.episodes.tasks import Pool
from pipeline.errors import InputError

PER_SHARD = 1000  # pictures


def read_labelled(pictures: Pictures, per_class: int, seed: int) -> pl.DataFrame:
    """`[train/][<domain>/]<class>/<picture>` → key (the path), topic, name, domain of up to `per_class` pictures a class, in path order.

    Where there is a train/, the rest (a test part) is left alone. Topics and domains number the names in
    sorted order; `_` in a folder's name is a space in the class's.

    Raises InputError for another layout, or for no pictures.
    """
    train = [name for name in pictures.names if name.startswith("train/")]
    rows = []
    for name in train or pictures.names:
        parts = name.removeprefix("train/").split("/")
        if len(parts) not in (2, 3):
            raise InputError(f"{pictures.path}: '{name}' does not fit [train/][<domain>/]<class>/<picture>; sort the pictures into that layout")
        rows.append((name, parts[-2].replace("_", " "), parts[0] if len(parts) == 3 else ""))
    if not rows:
        raise InputError(f"{pictures.path}: holds no pictures")
    keys, classes, domains = zip(*rows)
    names, topic = np.unique(classes, return_inverse=True)
    rng = np.random.default_rng(seed)
    members = (np.flatnonzero(topic == t) for t in range(len(names)))
    chosen = np.sort(np.concatenate([rng.permutation(rows)[:per_class] for rows in members]))
    table = pl.DataFrame({"key": keys, "topic": topic, "name": classes, "domain": np.unique(domains, return_inverse=True)[1]})
    return table[chosen]


def write_labelled(table: pl.DataFrame, pictures: Pictures, backbone: Backbone, work: Path, progress) -> None:
    """Features and files of the pictures of `read_labelled`, in shards; those that are there already stay."""
    schema = labelled_schema(backbone.dim)
    for number, rows in enumerate(progress(list(table.iter_slices(PER_SHARD)), "features")):
        out = work / f"{number:05d}.parquet"
        if not out.exists():
            files = [pictures.read(key) for key in rows["key"]]
            features = image_features(backbone, (backbone.test_view(open_picture(file)) for file in files)).numpy()
            columns = [*(rows[name].to_arrow() for name in ("key", "topic", "name", "domain")), to_vectors(features), pa.array(files, pa.binary())]
            write_table(pa.table(columns, names=schema.names), out, schema)


def labelled_pool(folder: Path) -> Pool:
    """What tasks are drawn from; the files stay on disk."""
    table = read_shards(folder, labelled_schema(vector_dim(shard_paths(folder)[0], "image")), ["key", "topic", "name", "domain", "image"])
    rows = pl.from_arrow(table.select(["topic", "name"])).unique().sort("topic")
    return Pool(table["topic"].to_numpy(), table["domain"].to_numpy(), rows["name"].to_list(), table["key"].to_pylist(), from_vectors(table["image"]))


def labelled_pictures(folder: Path, keys: set[str]) -> dict[str, bytes]:
    """Key → file of some of the pictures."""
    shards = pl.scan_parquet(shard_paths(folder)).select("key", "picture")
    return dict(shards.filter(pl.col("key").is_in(sorted(keys))).collect().iter_rows())
