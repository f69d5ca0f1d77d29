"""Schemas of the pairs' artifacts; every one is keyed by `key` and sorted by it."""

from __future__ import annotations

import pyarrow as pa

from pipeline.artifacts import vector_type

CAPTIONS = pa.schema([("key", pa.string()), ("caption", pa.string()), ("url", pa.string())])

# Beside every shard of pictures: what became of each of its links.
FETCHED = pa.schema([("key", pa.string()), ("status", pa.string()), ("error", pa.string())])

# A picture that several captions share has the shard, size and SHA-256 of each of their rows.
# status: success, or where it failed: failed_to_download, failed_to_resize (not a picture), broken
# (cut off).
PAIRS = pa.schema(
    [
        ("key", pa.string()),
        ("caption", pa.string()),
        ("status", pa.string()),
        ("error", pa.string()),
        ("shard", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("bytes", pa.int32()),
        ("sha256", pa.string()),
    ]
)

# Where captions share pictures, `pairs.parquet` has this column too: the key under which a row's
# picture lies in the shard, the same for all its captions (`reading.read_pairs`).
PICTURE = pa.field("picture", pa.string())

KEPT = pa.schema(
    [
        ("key", pa.string()),
        ("caption", pa.string()),
        ("score", pa.float32()),
        ("kept", pa.bool_()),
        ("reason", pa.string()),
    ]
)


def features_schema(dim: int) -> pa.Schema:
    return pa.schema(
        [("key", pa.string()), ("image", vector_type(dim)), ("text", vector_type(dim))]
    )
