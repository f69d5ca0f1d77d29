"""Parameters of the caption table (`source:` in params.yaml)."""

from __future__ import annotations

from typing import Literal

from pipeline.params import Section


class Source(Section):
    """A table of captions and URLs, with or without pictures of its own."""

    path: str  # folder that holds the table, and the pictures if they are local
    table: str  # file in `path`: .tsv, .csv or .parquet
    columns: list[str] | None  # names of the columns of a table without a header row; null: it has one
    pictures: str | None  # folder or zip in `path` that relative URLs point into; null: all URLs are absolute
    bad_rows: Literal["error", "drop"]  # rows without caption or URL, or with stray tabs: stop, or drop and count
