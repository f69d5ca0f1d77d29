"""Parameters of benchmarks, few-shot draws, tuning and protocols."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, Field, model_validator

from pipeline.params import Distinct, Name, Part, Section, Seed

Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0, le=1e38, allow_inf_nan=False)]  # what 32 bits hold
Counts = Annotated[list[Count], Distinct]
Seeds = Annotated[list[Seed], Field(min_length=1), Distinct]
Benchmarks = Annotated[list[Name], Distinct]  # entries of `benchmarks:`
Layout = Literal[
    "folders",
    "imagenet",
    "caltech101",
    "oxford_pets",
    "stanford_cars",
    "flowers102",
    "food101",
    "fgvc_aircraft",
    "sun397",
    "dtd",
    "eurosat",
    "ucf101",
    "imagenetv2",
    "imagenet_sketch",
    "imagenet_a",
    "imagenet_r",
    "domains",
]
LAYOUTS = get_args(Layout)


def _has_place(template: str) -> str:
    before, place, after = template.partition("{}")
    if not place or "{" in before + after or "}" in before + after:
        raise ValueError("must hold {} once, where the class name goes, and no other brace")
    return template


# a hand-written prompt; {} stands for the class name
PromptTemplate = Annotated[str, AfterValidator(_has_place)]


class Shots(Section):
    """Numbers of pictures per class that draws are made of."""

    base: Counts = []  # for tuning on the base classes
    all: Counts = []  # for tuning on all classes


SPLIT = "{seed: 1, train: 0.5}"  # as an example


class Split(Section):
    """How a dataset without parts of its own is cut, class by class and domain by domain."""

    seed: Seed
    train: Annotated[float, Field(ge=0, lt=1)]  # share of the pictures; the others are for tests


class Benchmark(Section):
    """A labelled dataset (an entry of `benchmarks:`)."""

    # folders: <train|test>/[<domain>/]<class>/<picture>; domains: <domain>/<class>/<picture>; the
    # others: docs/benchmarks.md
    layout: Layout = "folders"
    path: str  # its folder, or a zip
    # of `folders`: test pictures of these domains only; of `domains`: these only
    domains: Annotated[list[str], Field(min_length=1), Distinct] | None = None
    split: Split | None = None  # of `domains`
    shots: Shots = Shots()  # few-shot draws to prepare

    @model_validator(mode="after")
    def _layout_has_it(self) -> Benchmark:
        if (self.split is not None) != (self.layout == "domains"):
            raise ValueError(
                f"the layout 'domains', and no other, needs a 'split: {SPLIT}'; the layout is "
                f"'{self.layout}'"
            )
        if self.domains is not None and self.layout not in ("folders", "domains"):
            raise ValueError(
                f"'domains' is for the layout 'folders' or 'domains'; '{self.layout}' has none"
            )
        if self.split and not self.split.train and (self.shots.base or self.shots.all):
            raise ValueError("'split.train' is 0, but 'shots' asks for draws of training pictures")
        return self


class Tunings(Part):
    """The shots that prompts are tuned on."""

    # its base classes; judged on its base and its new classes
    base_to_new: Counts
    # all its classes; judged on its test pictures and where `Protocols` says
    all_classes: Counts


class Protocols(Tunings):
    """What a benchmark that prompts are tuned on is the source of (an entry of `protocols:`, by
    the benchmark's name).
    """

    # what is tuned on all classes is judged on these benchmarks too: other domains of them …
    cross_domain: Benchmarks = []
    cross_dataset: Benchmarks = []  # … and on these: other classes

    @model_validator(mode="after")
    def _tunes_something(self) -> Protocols:
        if not (self.base_to_new or self.all_classes):
            raise ValueError(
                "names no shots; give 'base_to_new' or 'all_classes' a list of them, or remove "
                "the entry"
            )
        if (self.cross_domain or self.cross_dataset) and not self.all_classes:
            raise ValueError(
                "has targets, but no shots under 'all_classes'; prompts are tuned on all classes "
                "before they are judged elsewhere"
            )
        return self


class FewShot(Section):
    """What is drawn from each benchmark's training part."""

    draws: Seeds  # random draws that are prepared, one per seed
    seeds: Seeds  # of these, the ones that methods are tuned on
    epochs: Count  # every epoch sees its own augmented view of each picture


class Rates(Part):
    """SGD on the few shots; the protocol's values are the defaults."""

    lr: Annotated[float, Field(gt=0, le=1e38)]  # what 32 bits hold
    # the first epoch's constant rate; then a cosine from `lr`
    warmup_lr: Annotated[float, Field(gt=0, le=1e38)]
    momentum: Annotated[float, Field(ge=0, lt=1)]
    weight_decay: Annotated[float, Field(ge=0)]


class Sgd(Rates):
    """The same for one kind of prompt."""

    batch: Count  # pictures per step


class Tuning(Sgd):
    """The same for all kinds (`tuning:`)."""

    batch_of: dict[str, Count]  # pictures per step of a kind of prompt, instead of `batch`
    # times `lr`, by kind of prompt: a sweep of `lr` moves all methods
    lr_factor_of: dict[str, Rate]


def sgd_of(rates: Rates, own: dict[str, Any]) -> Sgd:
    """The common rates with what a method has of its own, as the stage `batch` writes it: `batch`,
    and `lr_factor` if it is not 1.
    """
    lr = rates.lr * own.get("lr_factor", 1.0)
    return Sgd(**rates.model_dump() | {"lr": lr, "batch": own["batch"]})


class Evaluate(Section):
    """What is judged beside the tokens after the last epoch."""

    curve_epochs: Counts  # epochs after which base and new accuracy are measured too
