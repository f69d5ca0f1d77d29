"""Parameters of meta-training and of the methods."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline.params import Section

Rate = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
TokenCount = Annotated[int, Field(ge=1, le=64)]


class Method(Section):
    """A prompt method tuned straight from its own initial tokens (an entry of `methods.direct`)."""

    prompt: Literal["template", "coop"]
    title: str  # its name in tables and plots


class MetaMethod(Section):
    """A prompt method whose start is meta-learned (an entry of `methods.meta`)."""

    prompt: Literal["coop"]
    title: str
    episodes: str  # entry of `episodes:` that it learns from
    regulator: Literal["affine", "identity"]  # Eq 5–6, or plain gradients (an ablation)
    order: Literal["second", "first"]  # differentiate through the inner step, or not


class Regulator(Section):
    """What the paper leaves open about R^φ; docs/choices.md has the measurements."""

    input_scale: Literal["rms", "none"]  # bring the raw gradient to unit size before Eq 5 and back after Eq 6
    bias: Annotated[float, Field(gt=0)]  # initial b^γ; tanh(bias) is the first γ


class Outer(Section):
    """How θ and φ are stepped."""

    clip_norm: Rate  # largest norm of the meta-gradient of θ, and of φ
    checkpoint_every: Count  # meta-steps


class Methods(Section):
    """The methods that are compared."""

    direct: dict[str, Method]  # tuned from their own initial tokens, or not tuned at all
    meta: dict[str, MetaMethod]  # meta-learned first (Algorithm 1), then tuned from there
