"""Schemas of the clustering's artifacts."""

from __future__ import annotations

import pyarrow as pa

from pipeline.artifacts import vector_type

# topic −1: outlier. strength: HDBSCAN's membership, 0 for outliers.
TOPICS = pa.schema([("key", pa.string()), ("topic", pa.int32()), ("strength", pa.float32())])

# Places on the map, of the captions that stand there.
MAP = pa.schema([("key", pa.string()), ("x", pa.float32()), ("y", pa.float32())])

# Topics as they are after a person's edits, numbered like LABELS; −1: outlier or dropped.
CLUSTERS = pa.schema([("key", pa.string()), ("topic", pa.int32())])

# words[0] scored highest; the name is the first word that no stronger topic uses, null where there
# is none: such a topic is no class.
LABELS = pa.schema(
    [
        ("topic", pa.int32()),
        ("name", pa.string()),
        ("size", pa.int32()),
        ("words", pa.list_(pa.string())),
        ("scores", pa.list_(pa.float32())),
    ]
)

# Domains are numbered within their topic by falling size.
DOMAINS = pa.schema([("key", pa.string()), ("topic", pa.int32()), ("domain", pa.int32())])


def reduced_schema(dim: int) -> pa.Schema:
    """What was clustered: the captions of the sample, where UMAP put them, and HDBSCAN's clusters
    of them (−1: none), before outliers join a topic.
    """
    return pa.schema(
        [
            ("key", pa.string()),
            ("cluster", pa.int32()),
            ("place", pa.list_(pa.float32(), dim)),
        ]
    )


def sentences_schema(dim: int) -> pa.Schema:
    return pa.schema([("key", pa.string()), ("embedding", vector_type(dim))])
