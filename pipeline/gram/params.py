"""Parameters of meta-training and of the methods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.benchmarks.params import Benchmarks, PromptTemplate, Rate
from pipeline.episodes.params import Episodes, Labelled
from pipeline.params import SAME_BYTES, Distinct, Name, Part, Section, Seed, did_you_mean

Count = Annotated[int, Field(ge=1)]
TokenCount = Annotated[int, Field(ge=1, le=64)]
# (method, the one it is compared with)
Pairs = Annotated[
    list[Annotated[list[Name], Field(min_length=2, max_length=2), Distinct]], Distinct
]
# few-shot draws of a study's seed: one of them in turn, or all
DrawsOfASeed = Literal["turns", "all"]
Prompt = Literal["coop", "cocoop", "vpt", "joint", "coupled"]


class ZeroShot(Section):
    """Hand-written prompts, nothing tuned (an entry of `methods.zero_shot`)."""

    # for every benchmark alike, their features averaged; null: each benchmark's own
    templates: Annotated[list[PromptTemplate], Field(min_length=1), Distinct] | None = None


class Method(Section):
    """A prompt method tuned straight from its own initial tokens (an entry of `methods.direct`)."""

    prompt: Prompt
    depth: Count = 1  # blocks that get learned tokens; 1: at the towers' input only
    tokens: TokenCount | None = None  # instead of `context_tokens`
    # words that the context starts from, or random; without: the first words of "a photo of a",
    # beyond four tokens random
    init: str | None = None


class MetaMethod(Method):
    """A prompt method whose start is learned from episodes (an entry of `methods.meta`)."""

    episodes: str  # entry of `episodes:` that it learns from
    # Algorithm 1, or plain classification of the same pictures (Table 6, row 3)
    algorithm: Literal["gram", "pretrain"] = "gram"
    # Eq 5–6, or plain gradients (Table 6, row 2)
    regulator: Literal["affine", "identity"] = "affine"
    order: Literal["second", "first"] = "second"  # differentiate through the inner step, or not
    inner_lr_factor: Rate = 1.0  # times the common one: a sweep of `inner_lr` moves all methods
    outer_lr_factor: Rate = 1.0
    steps: Count | None = None  # instead of `meta_steps`


class Regulator(Section):
    """What the paper leaves open about R^φ; docs/choices.md has the measurements."""

    # bring the raw gradient to unit size before Eq 5 and back after Eq 6
    input_scale: Literal["rms", "none"]
    bias: Annotated[float, Field(ge=0)]  # initial b^γ; tanh(bias) is the first γ
    weight_std: Annotated[float, Field(ge=0)]  # standard deviation of the initial W^γ and W^β
    bias_per_token: bool  # b for every token of its own, or one for all tokens of a modality

    @model_validator(mode="after")
    def _lets_gradients_through(self) -> Regulator:
        if not self.bias and not self.weight_std:
            raise ValueError(
                "'bias' and 'weight_std' are both 0: γ = tanh(0) = 0 would stop every inner step; "
                "raise one of them"
            )
        return self


class Outer(Part):
    """How θ and φ are stepped."""

    optimiser: Literal["adamw", "sgd"]
    weight_decay: Annotated[float, Field(ge=0)]  # AdamW's, on θ and φ
    schedule: Literal["constant", "cosine"]  # of both rates over `meta_steps`
    clip_norm: Rate  # largest norm of the meta-gradient of θ, and of φ
    # of the forward passes (autocast); θ, φ and their steps are fp32
    precision: Literal["fp32", "bf16"]
    recompute: bool  # keep blocks' inputs only and run them again backwards: less memory, more time
    # meta-steps between looks at the loss before adaptation and at the gradients' agreement
    measure_every: Count
    # meta-steps between looks at the validation tasks; it reruns the stage, as `keep: best` chooses
    # among these looks
    validate_every: Count = 30
    # the last θ and φ, the best on validation tasks, or the mean over the second half of training
    keep: Literal["last", "best", "average"] = "last"
    checkpoint_every: Annotated[Count, SAME_BYTES]  # meta-steps


# Keys that a stage reads and does not depend on. Nothing that is learned changes with them: they
# say which steps the curve has figures of, and how much of an interrupted training is kept.
UNTRACKED = ("outer.measure_every", "outer.checkpoint_every")


@dataclass(frozen=True)
class Learning:
    """What meta-learning needs of params.yaml beside the method's own entry, by its names there."""

    context_tokens: TokenCount
    inner_lr: Rate
    inner_steps: Count
    outer_lr: Rate
    regulator_lr: Rate
    meta_batch: Count
    meta_steps: Count
    regulator: Regulator
    outer: Outer


class Tuned(Section):
    """Methods that learn something."""

    direct: dict[Name, Method]  # tuned from their own initial tokens
    meta: dict[Name, MetaMethod]  # learned from episodes first (Algorithm 1), then tuned from there
    # names in tables and plots, apart from the entries, so that a new one reruns the tables alone;
    # without one, a method is called as its entry
    titles: dict[Name, str] = {}

    @property
    def names(self) -> list[str]:
        return [*self.direct, *self.meta]

    @property
    def called(self) -> dict[str, str]:
        """The title of every method."""
        return {name: self.titles.get(name, name) for name in self.names}


class Methods(Tuned):
    """The methods that are compared."""

    zero_shot: dict[Name, ZeroShot]

    @property
    def names(self) -> list[str]:
        return [*self.zero_shot, *super().names]


class Study(Section):
    """What `make study` repeats over seeds: methods beyond the main table, and who is compared
    with whom.
    """

    # meta-seeds: of initial tokens and of episodes, on the same clusters
    seeds: Annotated[list[Seed], Field(min_length=2), Distinct]
    episodes: dict[Name, Episodes]  # tasks, drawn anew for every seed
    labelled: dict[Name, Labelled]
    methods: Tuned
    # tuned on their base classes, judged on both halves
    benchmarks: Annotated[Benchmarks, Field(min_length=1)]
    shots: Count
    draws: DrawsOfASeed
    # (method, the one it is compared with)
    pairs: Pairs


def known_pairs(
    pairs: list[list[str]], titles: dict[str, str], place: str
) -> tuple[list[list[str]], list[str]]:
    """The pairs of methods that there are, and a remark on each other one: a method that was
    removed may still stand in `place`.
    """
    kept, remarks = [], []
    for pair in pairs:
        missing = [name for name in pair if name not in titles]
        if missing:
            hint = did_you_mean(missing[0], titles) if titles else ""
            remarks.append(
                f"{place} compares {' with '.join(pair)}, but there is no method '{missing[0]}'"
                f"{hint}; this pair is left out"
            )
        else:
            kept.append(pair)
    return kept, remarks
