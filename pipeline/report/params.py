"""Parameters of the report."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pipeline.gram.params import Pairs
from pipeline.params import Section

Count = Annotated[int, Field(ge=1)]


class Gallery(Section):
    """How much of the data the page shows."""

    topics: Count  # topics with words and pictures, the largest first
    pictures_per_domain: Count
    map_points: Count  # points on the topic map; more are sampled


class Report(Section):
    """Intervals and comparisons of the page's tables."""

    resamples: Annotated[int, Field(ge=1000)]  # of the bootstrap over test pictures
    # (method, the one it is compared with)
    pairs: Pairs
    later_methods: bool  # published averages of other methods below the paper's Table 1
