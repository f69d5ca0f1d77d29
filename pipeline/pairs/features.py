"""CLIP features of every fetched pair, shard by shard."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from pipeline.artifacts import (
    numbered,
    read_table,
    remedy,
    shard_paths,
    to_vectors,
    usable,
    vector_dim,
    write_table,
)
from pipeline.clip.backbone import (
    image_features,
    load_backbone,
    text_features,
    viewed,
)
from pipeline.engine import mapped
from pipeline.errors import InputError
from pipeline.image_file import open_picture
from pipeline.pairs.reading import left_out, read_pairs, read_pictures
from pipeline.pairs.schemas import features_schema


def _extractor(
    backbone: Path, shards: Path, pairs: dict[str, pl.DataFrame]
) -> Callable[[str], pa.Table]:
    model = load_backbone(backbone)

    def extract(shard: str) -> pa.Table:
        rows = pairs[shard]
        wanted, there = set(rows["picture"]), []

        def pictures():
            for key, content in read_pictures(shards / shard):
                if key in wanted:
                    there.append(key)
                    yield content

        views = viewed(model, open_picture, pictures())
        found = image_features(model, views).numpy()
        place = {key: row for row, key in enumerate(there)}
        if missing := wanted - place.keys():
            raise InputError(
                f"{shards / shard}: holds no picture '{min(missing)}', which the index names; "
                f"{remedy(shards)}"
            )
        images = found[[place[key] for key in rows["picture"]]]
        texts = text_features(model, rows["caption"].to_list()).numpy()
        return _table(rows["key"], images, texts)

    return extract


def _table(keys: pl.Series, images: np.ndarray, texts: np.ndarray) -> pa.Table:
    """The rows whose vectors are both directions; the keys of the others stand in the metadata."""
    there = {"image": usable(images), "text": usable(texts)}
    noted = {
        f"unusable_{column}": " ".join(keys.filter(pl.Series(~good)))
        for column, good in there.items()
        if not good.all()
    }
    whole = there["image"] & there["text"]
    return pa.table(
        [
            keys.filter(pl.Series(whole)).to_arrow().cast(pa.string()),
            to_vectors(images[whole]),
            to_vectors(texts[whole]),
        ],
        schema=features_schema(images.shape[1]).with_metadata(noted or None),
    )


def _counted(work: Path, groups: dict[str, pl.DataFrame]) -> tuple[int, int, dict[str, int]]:
    """What `extract_features` returns, from the shards of features.

    Raises InputError if they do not hold the pairs, row by row.
    """
    dim = vector_dim(shard_paths(work)[0], "image")
    unusable: Counter[str] = Counter()
    pairs = 0
    for shard, rows in groups.items():
        path = work / f"{Path(shard).stem}.parquet"
        lacking = left_out(path)
        keys = read_table(path, features_schema(dim), ["key"])["key"].to_pylist()
        if sorted({*keys}.union(*lacking.values())) != rows["key"].to_list():
            raise InputError(
                f"{path}: its keys are not those of {shard}; delete it and run the stage again"
            )
        unusable += Counter({column: len(found) for column, found in lacking.items()})
        pairs += len(keys)
    return pairs, dim, dict(unusable)


def extract_features(
    pairs: Path, shards: Path, work: Path, backbone: Path, progress
) -> tuple[int, int, dict[str, int]]:
    """Writes work/NNNNN.parquet (key, image, text) for every picture shard that has none yet. A
    picture is encoded once, however many captions it has.

    A pair for which the backbone gives no direction (numbers that are not finite, or zeros alone)
    is left out and noted (`reading.left_out`); the filter drops it and says why.

    Returns:
        The number of pairs with features and of dimensions; and of pairs that were left out for
        their "image" or "text", if there are any.

    Raises:
        InputError if no pair has a whole picture, or a picture is missing.
    """
    table = read_pairs(pairs, ["key", "caption", "status", "shard"])
    whole = table.filter(pl.col("status") == "success").sort("key")
    if not len(whole):
        raise InputError(
            f"{pairs}: none of its {len(table)} pairs has a whole picture; its columns `status` "
            "and `error` say why"
        )
    groups = {shard: rows for (shard,), rows in whole.group_by("shard", maintain_order=True)}
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
    return _counted(work, groups)


def smaller_pictures(pairs: Path, side: int) -> tuple[int, int]:
    """How many fetched pictures have a shorter side of less than `side` pixels, and how many
    there are.
    """
    whole = read_pairs(pairs).filter(pl.col("status") == "success").unique("picture")
    small = whole.select(pl.min_horizontal("width", "height") < side).to_series()
    return int(small.sum()), len(whole)
