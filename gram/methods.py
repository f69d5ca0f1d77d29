"""What `auto` chooses among, simplest first. Each gives a class matrix W: logits are
scale · f Wᵀ of an image feature f, so that a picture costs the same under all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.benchmarks.cache import Draw
from pipeline.benchmarks.params import Sgd
from pipeline.clip.backbone import Backbone
from pipeline.errors import InputError
from pipeline.gram.tune import tune
from pipeline.prompts.base import PromptMethod, Tokens
from pipeline.prompts.coop import CoOp
from pipeline.prompts.starts import Start, method_of
from pipeline.prompts.template import Template

TITLES = {
    "zero-shot": "Zero-shot",
    "start": "Meta-learned start, untuned",
    "probe": "Linear probe from the zero-shot head",
    "coop": "CoOp",
    "coop-start": "CoOp from the meta-learned start, regulated",
}
NEED_START = ("start", "coop-start")
NEED_VIEWS = ("coop", "coop-start")
VIEWS = 4  # augmented views of each picture that prompts are tuned on, beside its centre
STEPS = 60
TUNING = Sgd(lr=0.002, warmup_lr=1e-5, momentum=0.9, weight_decay=5e-4, batch=32)
CONTEXT_TOKENS = 4  # of plain CoOp: "a photo of a"
# Of the probe's squared distance to the zero-shot head, in logits. From 0.001 to 0.01 accuracy
# hardly changes, at 0.1 the pictures teach little (docs/own-pictures.md).
PULL = 0.003


@dataclass(frozen=True)
class Task:
    """What every method starts from."""

    backbone: Backbone
    names: tuple[str, ...]
    template: str
    start: Start | None
    seed: int


@dataclass(frozen=True)
class Learned:
    """W (K, e), and the tokens θ {name: (rows, d)} that it was made with ({}: hand-written)."""

    matrix: Tensor
    tokens: Tokens


Method = Callable[[Task, Tensor, Tensor], Learned]


def known(name: str, start: Start | None) -> None:
    """Raises InputError for a method that is not there, or that lacks a start."""
    if name not in TITLES:
        raise InputError(f"there is no method '{name}'; take auto, {', '.join(TITLES)}")
    if name in NEED_START and start is None:
        raise InputError(
            f"the method '{name}' needs a meta-learned start; give one with --start (start=)"
        )


def candidates(start: Start | None) -> list[str]:
    """The methods that can be had, simplest first."""
    return [name for name in TITLES if start is not None or name not in NEED_START]


def head(method: PromptMethod, tokens: Tokens, names: tuple[str, ...]) -> Tensor:
    """(K, e) text features of the prompted classes, on the CPU."""
    device = method.backbone.device
    with torch.inference_mode():
        one = {name: rows.unsqueeze(0).to(device) for name, rows in tokens.items()}
        features = method.text_features(one, method.prepare([list(names)]))
    return features[0].float().cpu().clone()


def _zero_shot(task: Task, seen: Tensor, labels: Tensor) -> Learned:
    return Learned(head(Template(task.backbone, [task.template]), {}, task.names), {})


def _start(task: Task, seen: Tensor, labels: Tensor) -> Learned:
    theta = {name: rows.cpu() for name, rows in task.start.theta.items()}
    return Learned(
        head(method_of(task.start.about, task.backbone, task.template), theta, task.names), theta
    )


def _probe(task: Task, seen: Tensor, labels: Tensor) -> Learned:
    """min over Δ of the mean cross-entropy under W₀ + Δ, plus PULL · scale² · |Δ|² / K."""
    first = _zero_shot(task, seen, labels).matrix.double()
    scale = float(task.backbone.logit_scale)
    centres = seen[:, 0].double()
    delta = torch.zeros_like(first, requires_grad=True)
    optimiser = torch.optim.LBFGS([delta], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        fit = F.cross_entropy(scale * centres @ (first + delta).T, labels)
        total = fit + PULL * scale**2 * delta.square().sum() / len(first)
        total.backward()
        return total

    optimiser.step(loss)
    return Learned((first + delta).detach().float(), {})


def tuned(task: Task, start: Start, seen: Tensor, labels: Tensor, steps: int) -> Learned:
    """Tokens after about `steps` steps from a start's, on centres and augmented views in turn."""
    method = method_of(start.about, task.backbone, task.template)
    views = seen.transpose(0, 1).numpy()
    per_epoch = max(1, len(labels) // TUNING.batch)
    epochs = max(2, round(steps / per_epoch))
    here = {
        part: {name: rows.to(task.backbone.device) for name, rows in tensors.items()}
        for part, tensors in (("theta", start.theta), ("phi", start.phi))
    }
    draw = Draw(
        [views[epoch % len(views)] for epoch in range(epochs)], labels.numpy(), list(task.names)
    )
    tokens = tune(method, replace(start, **here), draw, TUNING, task.seed)[-1]
    return Learned(head(method, tokens, task.names), tokens)


def plain_start(backbone: Backbone, seed: int) -> Start:
    """CoOp's own beginning: the words "a photo of a", and no regulator."""
    generator = torch.Generator().manual_seed(seed)
    theta = CoOp(backbone).initial(CONTEXT_TOKENS, generator)
    return Start("coop", 1, theta, {}, "none")


def _coop(task: Task, seen: Tensor, labels: Tensor) -> Learned:
    return tuned(task, plain_start(task.backbone, task.seed), seen, labels, STEPS)


def _coop_start(task: Task, seen: Tensor, labels: Tensor) -> Learned:
    return tuned(task, task.start, seen, labels, STEPS)


METHODS: dict[str, Method] = {
    "zero-shot": _zero_shot,
    "start": _start,
    "probe": _probe,
    "coop": _coop,
    "coop-start": _coop_start,
}


def rows_for(task: Task, tokens: Tokens, names: tuple[str, ...]) -> Tensor:
    """(K, e) rows of classes that there are no pictures of: the learned prompt with their names,
    or the hand-written one where no prompt was learned.
    """
    if tokens:
        return head(CoOp(task.backbone), tokens, names)
    return head(Template(task.backbone, [task.template]), {}, names)


def check_names(task: Task, names: tuple[str, ...], tokens: Tokens) -> None:
    """Raises InputError naming a class whose name gives no token, or too many for the context."""
    tower = task.backbone.text
    around = tower.split([task.template.format("")]).end.item()
    context = tokens["text"].shape[0] if tokens else 0
    most = tower.room - tower.starts - max(CONTEXT_TOKENS, context, around) - 2
    for name in names:
        count = tower.split([name.replace("_", " ")]).end.item()
        if count == 0 or not any(letter.isalnum() for letter in name):
            raise InputError(
                f"the class name '{name}' has no word that the text tower could read; rename it"
            )
        if count > most:
            raise InputError(
                f"the class name '{name}' has {count} tokens or more, and {most} fit the text "
                "tower beside the prompt; shorten it"
            )
