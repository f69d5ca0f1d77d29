"""What a check may know about each drawn link, and no stage of the chain may."""

from __future__ import annotations

import pyarrow as pa

# fate: fine, dead, truncated or page. mismatched: the caption tells of something else.
TRUTH = pa.schema(
    [
        ("url", pa.string()),
        ("name", pa.string()),
        ("family", pa.string()),
        ("style", pa.string()),
        ("fate", pa.string()),
        ("mismatched", pa.bool_()),
    ]
)
