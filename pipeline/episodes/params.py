"""Parameters of task construction."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline.params import Section

Ways = Annotated[int, Field(ge=2)]
Shots = Annotated[int, Field(ge=1)]


class Episodes(Section):
    """One set of tasks (an entry of `episodes:`)."""

    support: Literal["one_domain", "all_domains"]  # the paper's domain shift, or its ablation without
    tasks: Annotated[int, Field(ge=1)]  # a longer meta-training passes over them again
    confusable: Annotated[float, Field(ge=0, le=1)]  # share of tasks whose topics all lie near one another


class Labelled(Section):
    """Tasks from a dataset that people labelled, instead of clusters (an entry of `labelled:`)."""

    path: str  # folder or zip: [train/][<domain>/]<class>/<picture>
    per_class: Annotated[int, Field(ge=1)]  # pictures taken of a class at most, at random
    episodes: Episodes
