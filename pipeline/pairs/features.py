"""CLIP features of every fetched pair, shard by shard."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import polars as pl
import pyarrow as pa

from pipeline.artifacts import (
    numbered,
    read_table,
    shard_paths,
    to_vectors,
    vector_dim,
    write_table,
)
from pipeline.clip.backbone import image_features, load_backbone, open_picture, text_features
from pipeline.engine import mapped
from pipeline.pairs.reading import read_pictures
from pipeline.pairs.schemas import PAIRS, features_schema


def _extractor(
    backbone: Path, shards: Path, pairs: dict[str, pl.DataFrame]
) -> Callable[[str], pa.Table]:
    model = load_backbone(backbone)

    def extract(shard: str) -> pa.Table:
        captions = dict(pairs[shard].select("key", "caption").iter_rows())
        views = (
            model.test_view(open_picture(content))
            for key, content in read_pictures(shards / shard)
            if key in captions
        )
        images = image_features(model, views).numpy()
        texts = text_features(model, list(captions.values())).numpy()
        return pa.table(
            [pa.array(list(captions)), to_vectors(images), to_vectors(texts)],
            schema=features_schema(model.dim),
        )

    return extract


def extract_features(
    pairs: Path, shards: Path, work: Path, backbone: Path, progress
) -> tuple[int, int]:
    """Writes work/NNNNN.parquet (key, image, text) for every picture shard that has none yet.

    Returns:
        The number of pairs with features, and of dimensions.
    """
    table = pl.from_arrow(read_table(pairs, PAIRS, ["key", "caption", "status", "shard"])).filter(
        pl.col("status") == "success"
    )
    groups = {shard: rows for (shard,), rows in table.group_by("shard", maintain_order=True)}
    number = {shard: n for n, shard in enumerate(sorted(groups))}
    missing = {
        shard: out for shard in number if not (out := work / f"{Path(shard).stem}.parquet").exists()
    }
    build = partial(_extractor, backbone, shards, {shard: groups[shard] for shard in missing})
    for shard, features in progress(
        mapped(build, list(missing), gpu=True), "features", total=len(missing)
    ):
        schema = numbered(features.schema, number[shard], len(groups))
        write_table(features, missing[shard], schema)
    return len(table), vector_dim(shard_paths(work)[0], "image")
