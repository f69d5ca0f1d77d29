"""What `auto` chooses among, simplest first. Each gives what a picture's feature f is scored
against: mostly a class matrix W, logits being scale · f Wᵀ. Visual tokens change f too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gram import heads
from gram.prompted import Learned, Seen, Task, learned_by
from pipeline.benchmarks.cache import Draw
from pipeline.benchmarks.params import Sgd, sgd_of
from pipeline.benchmarks.views import AugmentedViews
from pipeline.clip.backbone import Backbone
from pipeline.clip.blocks import recomputed_activations
from pipeline.errors import InputError
from pipeline.gram.tune import tune
from pipeline.prompts import METHODS as PROMPTS
from pipeline.prompts.base import PromptMethod
from pipeline.prompts.coop import CoOp
from pipeline.prompts.starts import Start, method_of

TITLES = {
    "zero-shot": "Zero-shot",
    "start": "Meta-learned start, untuned",
    "probe": "Linear probe from the zero-shot head",
    "start-probe": "Linear probe from the meta-learned start",
    "logistic": "Logistic regression on the features",
    "coop": "CoOp",
    "coop-start": "CoOp from the meta-learned start, regulated",
}
# Kinds of prompt in words, for a start of another kind than CoOp's.
KINDS = {
    "coop": "CoOp",
    "cocoop": "CoCoOp",
    "vpt": "VPT",
    "joint": "Textual and visual tokens",
    "coupled": "Coupled tokens",
}
NEED_START = ("start", "start-probe", "coop-start")
HEADS = ("probe", "start-probe", "logistic")
TUNE = ("coop", "coop-start")
VIEWS = 4  # augmented views of each picture that textual prompts are tuned on, beside its centre
STEPS = 60
TUNING = Sgd(lr=0.002, warmup_lr=1e-5, momentum=0.9, weight_decay=5e-4, batch=32)
BATCH_OF = {"cocoop": 1}  # every picture has a text of its own for every class
LR_FACTOR_OF = {"vpt": 0.2, "joint": 0.2}  # longer steps wreck visual tokens (docs/choices.md)
CONTEXT_TOKENS = 4  # of plain CoOp: "a photo of a"


Method = Callable[[Task, Seen, Tensor], Learned]


def known(name: str, start: Start | None) -> None:
    """Raises InputError for a method that is not there, or that lacks a start."""
    if name not in TITLES:
        raise InputError(f"there is no method '{name}'; take auto, {', '.join(TITLES)}")
    if name in NEED_START and start is None:
        raise InputError(
            f"the method '{name}' needs a meta-learned start; give one with --start (start=)"
        )
    if name == "start-probe" and not has_head(start):
        raise InputError(
            f"the method '{name}' needs a start whose tokens stand in the text alone, the same "
            "for all pictures, as CoOp's do; take 'probe' or 'coop-start'"
        )


def titled(name: str, start: Start | None) -> str:
    """A method's title: what is tuned is a prompt of the start's kind."""
    if name != "coop-start" or start is None:
        return TITLES[name]
    regulated = ", regulated" if start.phi else ""
    return f"{KINDS[start.prompt]} from the meta-learned start{regulated}"


def candidates(start: Start | None) -> list[str]:
    """The methods that can be had, simplest first."""
    fit = [name for name in TITLES if start is not None or name not in NEED_START]
    return [name for name in fit if name != "start-probe" or has_head(start)]


def unmeasured(start: Start | None) -> str:
    """The method to take where no picture can be held out, as one per class cannot: how far names
    are trusted is told by such few pictures too (docs/own-pictures.md).
    """
    return "start-probe" if has_head(start) else "probe"


def sees_pixels(start: Start | None) -> bool:
    """Whether the start's tokens stand among the patches, so that no feature can be kept."""
    return start is not None and PROMPTS[start.prompt].sees_pixels


def has_head(start: Start | None) -> bool:
    """Whether the start makes one class matrix, of texts alone."""
    return start is not None and not sees_pixels(start) and start.prompt != "cocoop"


def views_for(methods: list[str], start: Start | None) -> int:
    """Augmented views of which features are needed."""
    textual = "coop" in methods or ("coop-start" in methods and not sees_pixels(start))
    return VIEWS if textual else 0


def _zero_shot(task: Task, seen: Seen, labels: Tensor) -> Learned:
    return task.zero_shot


def _start(task: Task, seen: Seen, labels: Tensor) -> Learned:
    return task.started


def batch_of(start: Start) -> int:
    """Pictures in a step of tuning from a start."""
    return BATCH_OF.get(start.prompt, TUNING.batch)


def epochs_of(pictures: int, batch: int, steps: int) -> int:
    """Epochs in which `batch` pictures at a time make about `steps` steps; two at least, as the
    first one warms up.
    """
    return max(2, round(steps / max(1, pictures // batch)))


def _draw(method: PromptMethod, task: Task, seen: Seen, labels: Tensor, epochs: int) -> Draw:
    """Centres and augmented views in turn, as features; or, for those who need pixels, a new
    augmented view in every epoch.
    """
    if method.sees_pixels:
        views: Any = AugmentedViews(method.backbone, seen.opened, len(seen), epochs, task.seed)
    else:
        kept = seen.features.transpose(0, 1).numpy()
        views = [kept[epoch % len(kept)] for epoch in range(epochs)]
    return Draw(views, labels.numpy(), list(task.names))


def tuned(task: Task, start: Start, seen: Seen, labels: Tensor, steps: int) -> Learned:
    """Tokens after about `steps` steps from a start's, every gradient through its regulator (paper
    §3.3, "Testing").
    """
    method = method_of(start.about, task.backbone, task.template)
    factor = LR_FACTOR_OF.get(start.prompt, 1.0)
    settings = sgd_of(TUNING, {"batch": batch_of(start), "lr_factor": factor})
    epochs = epochs_of(len(labels), settings.batch, steps)
    draw = _draw(method, task, seen, labels, epochs)
    # pictures of 197 patches need gigabytes in a tower whose activations are all kept
    with recomputed_activations(method.sees_pixels):
        tokens = tune(method, start, draw, settings, task.seed)[-1]
    return learned_by(task, start.about, tokens)


def plain_start(backbone: Backbone, seed: int) -> Start:
    """CoOp's own beginning: the words "a photo of a", and no regulator."""
    generator = torch.Generator().manual_seed(seed)
    theta = CoOp(backbone).initial(CONTEXT_TOKENS, generator)
    return Start("coop", 1, theta, {}, "none")


def _coop(task: Task, seen: Seen, labels: Tensor) -> Learned:
    return tuned(task, plain_start(task.backbone, task.seed), seen, labels, STEPS)


def _coop_start(task: Task, seen: Seen, labels: Tensor) -> Learned:
    assert task.start is not None, "`known` has asked for it"
    return tuned(task, task.start, seen, labels, STEPS)


METHODS: dict[str, Method] = {
    "zero-shot": _zero_shot,
    "start": _start,
    "probe": heads.probe,
    "start-probe": heads.start_probe,
    "logistic": heads.logistic,
    "coop": _coop,
    "coop-start": _coop_start,
}


def check_names(task: Task, names: tuple[str, ...], context: int) -> None:
    """Raises InputError naming a class whose name gives no token, or too many for the text tower
    beside so many learned context tokens.
    """
    tower = task.backbone.text
    around = tower.split([task.template.format("")]).end.item()
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
