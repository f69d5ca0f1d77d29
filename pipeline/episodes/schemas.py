"""Schema of the episode shards: one row per picture of a task, tasks in order, one row group per
task.
"""

from __future__ import annotations

import pyarrow as pa

from pipeline.artifacts import vector_type


def episodes_schema(dim: int) -> pa.Schema:
    return pa.schema(
        [
            ("task", pa.int32()),
            ("role", pa.string()),  # role: support or query
            ("label", pa.int16()),
            ("name", pa.string()),  # class within the task, and its topic word
            ("topic", pa.int32()),
            ("domain", pa.int32()),
            ("key", pa.string()),
            ("image", vector_type(dim)),
            ("picture", pa.binary()),  # CLIP feature and JPEG bytes
        ]
    )
