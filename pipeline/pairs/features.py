"""CLIP features of every fetched pair, shard by shard."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pyarrow as pa

from pipeline.artifacts import read_table, to_vectors, write_table
from pipeline.clip.backbone import Backbone, image_features, open_picture, text_features
from pipeline.pairs.reading import read_pictures
from pipeline.pairs.schemas import PAIRS, features_schema


def extract_features(pairs: Path, shards: Path, work: Path, backbone: Backbone, progress) -> int:
    """Writes work/NNNNN.parquet (key, image, text) for every picture shard that has none yet.

    Returns:
        The number of pairs with features.
    """
    table = pl.from_arrow(read_table(pairs, PAIRS, ["key", "caption", "status", "shard"])).filter(pl.col("status") == "success")
    for (name,), rows in progress(sorted(table.group_by("shard", maintain_order=True)), "features", total=table["shard"].n_unique()):
        out = work / f"{Path(name).stem}.parquet"
        if out.exists():
            continue
        captions = dict(rows.select("key", "caption").iter_rows())
        keys = [key for key in captions]
        views = (backbone.test_view(open_picture(content)) for key, content in read_pictures(shards / name) if key in captions)
        images = image_features(backbone, views).numpy()
        texts = text_features(backbone, list(captions.values())).numpy()
        schema = features_schema(images.shape[1])
        write_table(pa.table([pa.array(keys), to_vectors(images), to_vectors(texts)], schema=schema), out, schema)
    return len(table)
