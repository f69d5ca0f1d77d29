"""Parameters of download, features and noise filter."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.params import SAME_BYTES, Part

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]


class Download(Part):
    """How pictures are fetched; what only changes the speed is an option of the stage instead."""

    image_size: Count  # pixels of the shorter side; smaller pictures stay as they are
    shard_rows: Annotated[int, Field(ge=2)]  # links per shard
    timeout: Annotated[Count, SAME_BYTES]  # seconds per request
    retries: Annotated[int, Field(ge=0), SAME_BYTES]
    # seconds for a picture, redirects and retries included: a server may send a byte at a time
    deadline: Annotated[Count, SAME_BYTES] = 120
    # of a file as it is sent
    max_megabytes: Annotated[float, Field(gt=0, allow_inf_nan=False), SAME_BYTES] = 20
    # ask hosts on loopback and private networks too; no, where strangers wrote the links
    private_addresses: bool
    # below this share of fetched pictures download fails, and index too
    min_success: Annotated[Share, SAME_BYTES]


class Selection(Part):
    """Where a score becomes a mismatch."""

    select: Literal["threshold", "quantile", "mixture"]
    # `threshold`: the least score; `quantile`: the share of pairs to drop; `mixture`: the
    # probability of a mismatch from which to drop
    threshold: float

    @model_validator(mode="after")
    def _threshold_is_a_share(self) -> Selection:
        if self.select != "threshold" and not 0 < self.threshold < 1:
            raise ValueError(
                f"with 'select: {self.select}', 'threshold' is a share between 0 and 1, but it is "
                f"{self.threshold}"
            )
        return self


class Filter(Selection):
    """Score once, select cheaply: only `filter` reruns when one of these changes."""

    # between spaces; where a script puts none between words, as many as its letters make on average
    min_words: Annotated[int, Field(ge=0)]
    min_characters: Annotated[int, Field(ge=0)]
    # CLIP reads 77 tokens, a few hundred characters; what is much longer is a page's text
    max_characters: Count
    min_side: Annotated[int, Field(ge=0)]  # pixels
    max_aspect: Annotated[float, Field(ge=1)]  # longer side / shorter side
    # cosine of image features; above 1: off
    duplicate_similarity: Annotated[float, Field(gt=0, le=1.01)]
    exact_up_to: Count  # pairs: beyond, copies are searched in cells …
    # … as many as find this share of a picture's nearest ones
    recall: Annotated[float, Field(gt=0, le=1)]
    # plain CLIP similarity, or corrected for hubs by its neighbourhood
    score: Literal["cosine", "csls"]
    neighbours: Count  # how many neighbours make the neighbourhood of `csls`, and measure `recall`

    @model_validator(mode="after")
    def _some_caption_fits(self) -> Filter:
        if self.min_characters > self.max_characters:
            raise ValueError(
                f"'min_characters' ({self.min_characters}) is above 'max_characters' "
                f"({self.max_characters}): no caption would be kept"
            )
        return self
