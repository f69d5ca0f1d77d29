"""Parameters of task construction."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.params import Section

Ways = Annotated[int, Field(ge=2)]
Shots = Annotated[int, Field(ge=1)]
# share of the topics that no training task has; validation tasks are drawn from them
Share = Annotated[float, Field(ge=0, lt=1)]
TaskCount = Annotated[int, Field(ge=1)]


class Episodes(Section):
    """One set of tasks (an entry of `episodes:`)."""

    # the paper's domain shift, or its ablation without
    support: Literal["one_domain", "all_domains"]
    tasks: TaskCount  # a longer meta-training passes over them again
    # share of tasks whose topics all lie near one another
    confusable: Annotated[float, Field(ge=0, le=1)]


class Labelled(Section):
    """Tasks from a dataset that people labelled, instead of clusters (an entry of `labelled:`)."""

    # folder or zip: [train/][<domain>/]<class>/<picture>, or anything that a list tells of
    path: str
    # file in it of lines `<picture> <label>`, as WebVision's; null: the folders tell the classes
    list: str | None
    names: str | None  # file in it with the name of every label, one a line
    per_class: Annotated[int, Field(ge=1)]  # pictures taken of a class at most, at random
    episodes: Episodes

    @model_validator(mode="after")
    def _labels_have_names(self) -> Labelled:
        if (self.list is None) != (self.names is None):
            raise ValueError("'list' and 'names' come together: give both, or null for both")
        return self
