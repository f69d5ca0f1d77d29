"""From a method's parameters to its start: initial tokens, and Algorithm 1 for those that are
meta-learned.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import get_type_hints

import polars as pl
import torch

from pipeline.artifacts import replacing
from pipeline.clip.backbone import Backbone
from pipeline.gram.meta import InnerStep
from pipeline.gram.params import Learning, MetaMethod, Method
from pipeline.gram.regulator import initial_phi
from pipeline.gram.train import Training, Workplace, meta_train
from pipeline.prompts import METHODS, PromptMethod
from pipeline.prompts.base import Tokens
from pipeline.prompts.starts import Start

# The fields of `Learning` for a stage's READS: attribute → (key, type).
LEARNING = {
    name: (name, kind) for name, kind in get_type_hints(Learning, include_extras=True).items()
}


def initial_tokens(
    backbone: Backbone, method: Method, context_tokens: int, generator: torch.Generator
) -> tuple[PromptMethod, Tokens]:
    """The method on a backbone, and where its tokens begin: {name: (rows, d)}."""
    made = METHODS[method.prompt](backbone, depth=method.depth)
    return made, made.initial(method.tokens or context_tokens, generator, method.init)


def training_of(method: MetaMethod, settings: Learning) -> Training:
    """The common settings with the method's own factors and number of steps."""
    judged = InnerStep(
        settings.inner_lr * method.inner_lr_factor,
        settings.inner_steps,
        method.order == "second",
        settings.regulator.input_scale,
    )
    return Training(
        judged if method.algorithm == "gram" else replace(judged, steps=0),
        settings.outer,
        outer_lr=settings.outer_lr * method.outer_lr_factor,
        regulator_lr=settings.regulator_lr,
        batch=settings.meta_batch,
        steps=method.steps or settings.meta_steps,
        judged=judged,
    )


def learn_start(
    backbone: Backbone, method: MetaMethod, settings: Learning, seed: int, place: Workplace
) -> tuple[Start, list[dict]]:
    """Meta-learns θ* and φ* (Algorithm 1), or pre-trains θ on the same tasks.

    Args:
        seed: of the initial tokens and φ.

    Returns:
        The start, and one row of figures per meta-step (see `meta_train`).
    """
    generator = torch.Generator().manual_seed(seed)
    prompt, theta = initial_tokens(backbone, method, settings.context_tokens, generator)
    regulated = method.algorithm == "gram" and method.regulator == "affine"
    phi = initial_phi(theta, settings.regulator, generator) if regulated else {}
    for leaf in (*theta.values(), *phi.values()):
        leaf.requires_grad_()
    curve = meta_train(prompt, theta, phi, training_of(method, settings), place)
    theta, phi = ({k: v.detach() for k, v in part.items()} for part in (theta, phi))
    return Start(method.prompt, method.depth, theta, phi, settings.regulator.input_scale), curve


def save_curve(curve: list[dict], path: Path) -> None:
    """The rows of `learn_start` as CSV; what was not measured at a step is empty."""
    with replacing(path) as temporary:
        pl.DataFrame(curve, infer_schema_length=None).write_csv(temporary, float_precision=6)
