"""Parameters of task construction."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

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

    path: str  # folder or zip: [train/][<domain>/]<class>/<picture>, or anything that a list tells of
    list: str | None  # file in it of lines `<picture> <label>`, as WebVision's; null: the folders tell the classes
    names: str | None  # file in it with the name of every label, one a line
    per_class: Annotated[int, Field(ge=1)]  # pictures taken of a class at most, at random
    episodes: Episodes

    @model_validator(mode="after")
    def _labels_have_names(self) -> Labelled:
        if (self.list is None) != (self.names is None):
            raise ValueError("'list' and 'names' come together: give both, or null for both")
        return self
