"""From a method's parameters to its start: initial tokens, and Algorithm 1 for those that are
meta-learned.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import polars as pl
import torch

from pipeline.artifacts import replacing
from pipeline.clip.backbone import Backbone
from pipeline.gram.meta import InnerStep
from pipeline.gram.params import Count, MetaMethod, Method, Outer, Rate, Regulator, TokenCount
from pipeline.gram.regulator import initial_phi
from pipeline.gram.train import meta_train
from pipeline.prompts import METHODS, PromptMethod
from pipeline.prompts.base import Tokens
from pipeline.prompts.starts import Start
from pipeline.stage import unwatched

# What `learn_start` needs of params.yaml, for a stage's READS.
LEARNING = {
    "context_tokens": ("context_tokens", TokenCount),
    "inner_lr": ("inner_lr", Rate),
    "inner_steps": ("inner_steps", Count),
    "outer_lr": ("outer_lr", Rate),
    "regulator_lr": ("regulator_lr", Rate),
    "meta_batch": ("meta_batch", Count),
    "meta_steps": ("meta_steps", Count),
    "regulator": ("regulator", Regulator),
    "outer": ("outer", Outer),
}


def initial_tokens(
    backbone: Backbone, method: Method, context_tokens: int, generator: torch.Generator
) -> tuple[PromptMethod, Tokens]:
    """The method on a backbone, and where its tokens begin: {name: (rows, d)}."""
    made = METHODS[method.prompt](backbone, depth=method.depth)
    return made, made.initial(method.tokens or context_tokens, generator, method.init)


def learn_start(
    backbone: Backbone,
    method: MetaMethod,
    episodes: Path,
    work: Path,
    *,
    seed: int,
    context_tokens: int,
    inner_lr: float,
    inner_steps: int,
    regulator: Regulator,
    outer: Outer,
    outer_lr: float,
    regulator_lr: float,
    meta_batch: int,
    meta_steps: int,
    progress,
    watch: Callable = unwatched,
    at_once: int | None = None,
) -> tuple[Start, list[dict]]:
    """Meta-learns θ* and φ* (Algorithm 1), or pre-trains θ on the same tasks; see `meta_train` for
    the arguments.

    Returns:
        The start, and one row of figures per meta-step.
    """
    generator = torch.Generator().manual_seed(seed)
    prompt, theta = initial_tokens(backbone, method, context_tokens, generator)
    meta = method.algorithm == "gram"
    phi = initial_phi(theta, regulator, generator) if meta and method.regulator == "affine" else {}
    for leaf in (*theta.values(), *phi.values()):
        leaf.requires_grad_()
    inner = InnerStep(
        inner_lr * method.inner_lr_factor,
        inner_steps if meta else 0,
        method.order == "second",
        regulator.input_scale,
    )
    curve = meta_train(
        prompt,
        theta,
        phi,
        episodes,
        work,
        inner=inner,
        outer=outer,
        outer_lr=outer_lr * method.outer_lr_factor,
        regulator_lr=regulator_lr,
        batch=meta_batch,
        steps=method.steps or meta_steps,
        progress=progress,
        watch=watch,
        at_once=at_once,
    )
    theta, phi = ({k: v.detach() for k, v in part.items()} for part in (theta, phi))
    return Start(method.prompt, method.depth, theta, phi, regulator.input_scale), curve


def save_curve(curve: list[dict], path: Path) -> None:
    """The rows of `learn_start` as CSV; what was not measured at a step is empty."""
    with replacing(path) as temporary:
        pl.DataFrame(curve, infer_schema_length=None).write_csv(temporary, float_precision=6)
