"""Parameters of the caption table (`source:` in params.yaml)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.params import Distinct, Part, Section


class Obtain(Section):
    """Where a table comes from that is not there yet."""

    url: Annotated[str, Field(pattern="^https?://")]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Site(Part):
    """Where relative URLs point."""

    path: str  # folder that holds the table, and the pictures if they are local
    # folder or zip in `path` that relative URLs point into; null: all URLs are absolute
    pictures: str | None


class Source(Site):
    """A table of captions and URLs, with or without pictures of its own."""

    # file in `path`: .tsv, .csv or .parquet; a folder or pattern of several (parts/*.parquet); or a
    # pattern of tars that hold pictures with their captions (*.tar)
    table: str
    obtain: Obtain | None  # fetch the table if it is not there; null: never
    # names of the columns of a .tsv or .csv without a header row; null: it has one
    columns: Annotated[list[str], Field(min_length=1), Distinct] | None
    # rows without caption or URL, or with stray tabs: stop, or drop and count
    bad_rows: Literal["error", "drop"]

    @model_validator(mode="after")
    def _tars_hold_everything(self) -> Source:
        if self.table.endswith(".tar"):
            if self.pictures != ".":
                raise ValueError(
                    "with a 'table' of tars, 'pictures' is \".\": the pictures are in them; but "
                    f"it is {self.pictures!r}"
                )
            if self.columns is not None or self.obtain is not None:
                raise ValueError("with a 'table' of tars, 'columns' and 'obtain' are null")
        return self
