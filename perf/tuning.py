"""Time of CoOp's tuning and evaluation on one dataset, against the loop that encodes every picture
anew.

    python perf/tuning.py [--classes 4] [--epochs 2] [--tests 16]

Both sides tune CoOp and CoOp with a regulator from the same start on the same prepared views, in
the same order, with the same SGD and schedule, and measure accuracy after every epoch:

* `ours`: views and test pictures are encoded once (the benchmark stage), then
  `pipeline.gram.tune.tune` on features, with texts cut at their end token.
* `plain`: every picture goes through the tower, without a gradient, whenever it is used, and texts
  have 77 positions.

What is shared: a seed's training views by both methods, the test pictures by all seeds, methods and
epochs. Views of different seeds differ and are encoded for each.

One seed is run, and the predictions of both sides are compared. The costs found (per picture, per
epoch) are then put together for the whole protocol (`--protocol-epochs`, `--protocol-seeds`,
`--protocol-tests`). The last line is JSON:

* `ratio`: whole protocol, all encoding included, accuracy after every epoch on both sides;
* `ratio_one_evaluation`: the same, `plain` looks at the test pictures once per run, at its end;
* `ratio_cached`: the tuning and evaluation stages alone, features from the benchmark stage;
* `ratio_text_only`: neither side's picture encoding counted;
* `ratio_measured`: the run itself, one seed, nothing put together.
"""

from __future__ import annotations

import argparse
import json
import time
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from meta_step import INNER, NAMES, Plain, inner_step, random_backbone, start
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from pipeline.benchmarks.cache import Draw
from pipeline.benchmarks.params import Sgd
from pipeline.benchmarks.views import train_view
from pipeline.clip.backbone import Backbone, image_features
from pipeline.gram.regulator import Phi
from pipeline.gram.tune import learning_rate, tune
from pipeline.prompts import METHODS
from pipeline.prompts.base import Tokens
from pipeline.prompts.starts import Start

SHOTS, SEED = 16, 1
SETTINGS = Sgd(lr=0.002, warmup_lr=1e-5, momentum=0.9, weight_decay=5e-4, batch=32)


@dataclass
class Times:
    """Seconds by what they were spent on, on the clock that was asked for."""

    clock: str
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def spent(self, name: str):
        now = time.process_time if self.clock == "cpu" else time.perf_counter
        began = now()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + now() - began


@dataclass(frozen=True)
class Dataset:
    """Prepared pictures: views (epochs, n, 3, h, w) with labels (n,), and tests (m, 3, h, w)
    with test_labels (m,).
    """

    names: list[str]
    views: Tensor
    labels: np.ndarray
    tests: Tensor
    test_labels: np.ndarray


def picture(label: int, random: np.random.Generator) -> Image.Image:
    """A noisy grating whose direction, width and colour belong to the class."""
    y, x = np.mgrid[:256, :256] / 256
    wave = np.sin(
        (8 + 6 * label) * (np.cos(label) * x + np.sin(label) * y) * np.pi + random.uniform(0, 6)
    )
    colour = 0.5 + 0.5 * np.cos(label + np.arange(3) * 2)
    pixels = 0.5 + 0.4 * wave[..., None] * colour + random.normal(0, 0.1, (256, 256, 3))
    return Image.fromarray((255 * pixels.clip(0, 1)).astype(np.uint8))


def dataset(backbone: Backbone, classes: int, epochs: int, tests: int) -> Dataset:
    """Synthetic pictures of `classes` classes; `tests` of each are for evaluation."""
    random, augment = np.random.default_rng(0), train_view(backbone)
    labels, test_labels = np.arange(classes).repeat(SHOTS), np.arange(classes).repeat(tests)
    opened = [picture(label, random) for label in labels]
    torch.manual_seed(SEED)
    views = torch.stack([torch.stack([augment(p) for p in opened]) for _ in range(epochs)])
    return Dataset(
        NAMES[:classes],
        views,
        labels,
        torch.stack([augment(picture(label, random)) for label in test_labels]),
        test_labels,
    )


def encode(backbone: Backbone, data: Dataset, times: Times) -> tuple[np.ndarray, Tensor]:
    """What the benchmark stage caches: (epochs, n, e) and (m, e) features."""
    with times.spent("encoding"):
        views = image_features(backbone, data.views.flatten(0, 1), SETTINGS.batch).unflatten(
            0, data.views.shape[:2]
        )
        return views.numpy(), image_features(backbone, data.tests, SETTINGS.batch)


def ours(
    backbone: Backbone,
    theta: Tokens,
    phi: Phi,
    data: Dataset,
    views: np.ndarray,
    tests: Tensor,
    times: Times,
) -> np.ndarray:
    """(epochs, m) predictions after every epoch."""
    method = METHODS["coop"](backbone)
    with times.spent("training"):
        start = Start("coop", 1, theta, phi, INNER.input_scale)
        states = tune(method, start, Draw(views, data.labels, data.names), SETTINGS, SEED)
    with times.spent("evaluation"), torch.no_grad():
        classes = method.prepare([data.names])
        tokens = [
            {name: value.unsqueeze(0).to(backbone.device) for name, value in state.items()}
            for state in states
        ]
        return np.stack(
            [
                method.logits(t, classes, tests.unsqueeze(0).to(backbone.device))[0]
                .argmax(dim=-1)
                .cpu()
                .numpy()
                for t in tokens
            ]
        )


def plain_predictions(
    plain: Plain, context: Tensor, text, tests: Tensor, times: Times
) -> np.ndarray:
    """(m,) predictions for (m, 3, h, w) test pictures, which are encoded for it."""
    with torch.no_grad():
        with times.spent("test encoding"):
            seen = torch.cat([plain.features(part) for part in tests.split(SETTINGS.batch)])
        with times.spent("evaluation"):
            return (seen @ plain.prompted_text(context, *text).T).argmax(dim=-1).cpu().numpy()


def plain(backbone: Backbone, theta: Tokens, phi: Phi, data: Dataset, times: Times) -> np.ndarray:
    """(epochs, m) predictions after every epoch."""
    model, order = Plain(backbone), np.random.default_rng(SEED)
    tokens = {name: value.clone().requires_grad_() for name, value in theta.items()}
    text = model.opened_text(data.names, len(theta["text"]))
    optimiser = torch.optim.SGD(
        tokens.values(),
        lr=SETTINGS.lr,
        momentum=SETTINGS.momentum,
        weight_decay=SETTINGS.weight_decay,
    )
    predictions = []
    for epoch, views in enumerate(data.views):
        optimiser.param_groups[0]["lr"] = learning_rate(epoch, len(data.views), SETTINGS)
        for rows in torch.from_numpy(order.permutation(len(data.labels))).split(SETTINGS.batch):
            with times.spent("training encoding"):
                seen = model.features(views[rows])
            with times.spent("training"):
                labels = torch.from_numpy(data.labels)[rows]
                loss = F.cross_entropy(
                    model.model.logit_scale.exp()
                    * seen
                    @ model.prompted_text(tokens["text"], *text).T,
                    labels,
                )
                gradients = dict(zip(tokens, torch.autograd.grad(loss, list(tokens.values()))))
                for name, g in inner_step(gradients, phi).items():
                    tokens[name].grad = g.detach()
                optimiser.step()
        predictions.append(plain_predictions(model, tokens["text"], text, data.tests, times))
    return np.stack(predictions)


@dataclass(frozen=True)
class Protocol:
    """Sizes of a whole comparison on one dataset."""

    epochs: int
    seeds: int
    train: int  # pictures of an epoch
    tests: int  # test pictures
    methods: int = 2

    @property
    def runs(self) -> int:
        return self.seeds * self.methods


def ratios(p: Protocol, data: Dataset, mine: Times, theirs: Times) -> dict[str, float]:
    """The ratios of this script's description, from the seconds that both methods together took."""
    # epochs of the protocol, and measured
    epochs, per_epoch = p.runs * p.epochs, p.methods * len(data.views)
    encode_mine = mine.seconds["encoding"] / (data.views[..., 0, 0, 0].numel() + len(data.tests))
    train_picture = theirs.seconds["training encoding"] / (per_epoch * len(data.labels))
    test_picture = theirs.seconds["test encoding"] / (per_epoch * len(data.tests))
    text_mine = [epochs * mine.seconds[name] / per_epoch for name in ("training", "evaluation")]
    text_theirs = [epochs * theirs.seconds[name] / per_epoch for name in ("training", "evaluation")]
    encoding = encode_mine * (p.seeds * p.epochs * p.train + p.tests)
    training, testing = epochs * p.train * train_picture, epochs * p.tests * test_picture
    total = sum(text_theirs) + training + testing
    at_end = text_theirs[0] + training + (text_theirs[1] + testing) / p.epochs
    return {
        "ratio": total / (sum(text_mine) + encoding),
        "ratio_one_evaluation": at_end / (sum(text_mine) + encoding),
        "ratio_cached": total / sum(text_mine),
        "ratio_text_only": sum(text_theirs) / sum(text_mine),
        "ratio_measured": sum(theirs.seconds.values()) / sum(mine.seconds.values()),
        "seconds_ours": sum(text_mine) + encoding,
        "seconds_ours_encoding": encoding,
        "seconds_plain": total,
    }


def main() -> None:
    cli = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cli.add_argument(
        "--classes",
        type=int,
        default=4,
        choices=range(2, len(NAMES) + 1, 2),
        help="even, so that an epoch is whole batches",
    )
    cli.add_argument("--epochs", type=int, default=2)
    cli.add_argument("--tests", type=int, default=16, help="test pictures per class in the run")
    cli.add_argument("--protocol-epochs", type=int, default=10)
    cli.add_argument("--protocol-seeds", type=int, default=3)
    cli.add_argument(
        "--protocol-tests",
        type=int,
        default=50,
        help="test pictures per class in the protocol: 50 in ImageNet and SUN397",
    )
    cli.add_argument("--threads", type=int, default=torch.get_num_threads())
    cli.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="cpu: processor seconds, for a machine that others use too; with --threads 1",
    )
    args = cli.parse_args()
    torch.set_num_threads(args.threads)
    backbone = random_backbone("cpu")
    data = dataset(backbone, args.classes, args.epochs, args.tests)
    theta, phi = (
        {name: value.detach() for name, value in part.items()} for part in start(backbone, "coop")
    )
    print(
        f"ViT-B/16 of random weights, {args.classes} classes, {SHOTS} shots, {args.epochs} "
        f"epochs, {len(data.tests)} test pictures, batch {SETTINGS.batch}, {args.threads} "
        f"thread(s), {args.clock} clock"
    )

    mine, theirs, different = Times(args.clock), Times(args.clock), 0
    views, tests = encode(backbone, data, mine)
    for title, regulator in (("CoOp", {}), ("CoOp + regulator", phi)):
        a, b = (
            ours(backbone, theta, regulator, data, views, tests, mine),
            plain(backbone, theta, regulator, data, theirs),
        )
        different += int((a != b).sum())
        print(
            f"{title}: accuracy after the last epoch, ours "
            f"{(a[-1] == data.test_labels).mean():.4f}, plain "
            f"{(b[-1] == data.test_labels).mean():.4f}; predictions that differ, all epochs: "
            f"{(a != b).sum()} of {a.size}",
            flush=True,
        )
    for side, times in (("ours", mine), ("plain", theirs)):
        print(
            f"{side}: "
            + ", ".join(f"{name} {seconds:.2f} s" for name, seconds in times.seconds.items())
        )
    found = ratios(
        Protocol(
            args.protocol_epochs,
            args.protocol_seeds,
            len(data.labels),
            args.classes * args.protocol_tests,
        ),
        data,
        mine,
        theirs,
    )
    print(
        json.dumps(
            {name: round(value, 3) for name, value in found.items()}
            | {"different_predictions": different}
        )
    )


if __name__ == "__main__":
    main()
