"""Parameters of benchmarks, few-shot draws and tuning."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from pipeline.params import Section

Count = Annotated[int, Field(ge=1)]


class Benchmark(Section):
    """A labelled dataset (an entry of `benchmarks:`)."""

    path: str  # folder or zip: <train|test>/[<domain>/]<class>/<picture>
    template: str  # the hand-written prompt of zero-shot CLIP; {} stands for the class name

    @field_validator("template")
    @classmethod
    def _has_place(cls, value: str) -> str:
        if value.count("{}") != 1:
            raise ValueError("must hold {} once, where the class name goes")
        return value


class FewShot(Section):
    """What is drawn from each benchmark's training part."""

    shots: Count  # pictures per class
    seeds: Annotated[list[int], Field(min_length=1)]  # one draw and one tuning for each
    epochs: Count  # every epoch sees its own augmented view of each picture


class Tuning(Section):
    """SGD on the few shots; the protocol's values are the defaults."""

    lr: Annotated[float, Field(gt=0)]
    warmup_lr: Annotated[float, Field(gt=0)]  # the first epoch's constant rate; then a cosine from `lr`
    momentum: Annotated[float, Field(ge=0, lt=1)]
    weight_decay: Annotated[float, Field(ge=0)]
    batch: Count  # pictures per step
