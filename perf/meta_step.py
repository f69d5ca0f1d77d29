"""Tasks per second and peak memory of the second-order meta-gradient, against the loop as it is
usually written.

    python perf/meta_step.py [--rounds 3] [--methods coop vpt joint] [--device cuda] [--bf16]

Three implementations compute the same gradients of θ and φ (Algorithm 1, one inner step) on the
same tasks:

* `ours`: `pipeline.gram.meta.meta_gradient`; textual methods take cached picture features.
* `func`: one task after another with nested `torch.func.grad`, open_clip's own modules, texts of 77
  positions, every picture through its tower.
* `higher`: the same loop with `higher.innerloop_ctx`.

Each runs in a process of its own, which gives its peak memory; their runs alternate. All weights
are random and frozen, in every implementation. The last line is JSON; a ratio is the speed of
`ours` over that of the faster of the other two. `func` needs much memory: about 9 GiB for 6
pictures of one task.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import open_clip
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from pipeline.clip.backbone import Backbone
from pipeline.clip.text import text_tower
from pipeline.clip.vision import vision_tower
from pipeline.gram.meta import InnerStep, cross_entropy, meta_gradient
from pipeline.gram.params import Regulator
from pipeline.gram.regulator import Phi, initial_phi, regulate
from pipeline.prompts import METHODS
from pipeline.prompts.base import Tokens

TITLES = {"coop": "textual", "vpt": "visual", "joint": "joint"}
IMPLEMENTATIONS = ("ours", "func", "higher")
CONTEXT = 4  # learned tokens of a method
INNER = InnerStep(lr=0.1, steps=1, second_order=True, input_scale="rms")
TEMPLATE = "a photo of a {}."
NAMES = [
    "golden retriever",
    "oak tree",
    "fire engine",
    "grand piano",
    "coffee mug",
    "mountain bike",
    "sea turtle",
    "wine bottle",
    "street lamp",
    "paper towel",
]
# Dense tensor-core peak in bf16 and peak in plain fp32, TFLOP/s, by a part of the device's name.
PEAKS = {
    "H200": (989, 67),
    "H100": (989, 67),
    "A100": (312, 19.5),
    "L40S": (362, 91.6),
    "A40": (150, 37.4),
    "V100": (125, 15.7),
    "4090": (165, 82.6),
}


@dataclass(frozen=True)
class Shapes:
    """What a run works on; `at_once`: tasks in one call of `ours`, by method."""

    ways: int
    shots: int
    queries: int
    at_once: dict[str, int]
    device: str
    bf16: bool
    threads: int
    clock: str


@dataclass(frozen=True)
class Part:
    """Support or query of one task: (n, 3, h, w) pixels and (n,) labels."""

    pixels: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Task:
    names: list[str]
    support: Part
    query: Part


@dataclass(frozen=True)
class Result:
    """A run's gradients, mean over tasks, and where the time went."""

    gradients: dict
    seconds: float
    encoding_seconds: float  # of them, for picture features without a gradient
    tasks: int


def random_backbone(device: str) -> Backbone:
    """ViT-B/16 with random weights, frozen."""
    torch.manual_seed(0)
    model = open_clip.create_model("ViT-B-16").eval().requires_grad_(False).to(device)
    tokenizer = open_clip.SimpleTokenizer(context_length=77)
    preprocess = {
        "size": 224,
        "mean": open_clip.OPENAI_DATASET_MEAN,
        "std": open_clip.OPENAI_DATASET_STD,
    }
    return Backbone(
        model,
        text_tower(model, tokenizer),
        vision_tower(model),
        tokenizer,
        lambda picture: picture,
        preprocess,
        model.visual.output_dim,
        torch.device(device),
    )


def random_tasks(shapes: Shapes, count: int) -> list[Task]:
    """Tasks of noise pictures; their speed is that of real ones."""
    random = torch.Generator().manual_seed(1)

    def part(per_class: int) -> Part:
        labels = torch.arange(shapes.ways).repeat_interleave(per_class)
        return Part(
            torch.randn(len(labels), 3, 224, 224, generator=random).to(shapes.device),
            labels.to(shapes.device),
        )

    def names() -> list[str]:
        return [NAMES[i] for i in torch.randperm(len(NAMES), generator=random)[: shapes.ways]]

    return [Task(names(), part(shapes.shots), part(shapes.queries)) for _ in range(count)]


def start(backbone: Backbone, method: str) -> tuple[Tokens, Phi]:
    """θ and φ, leaves that require a gradient. φ is not at its start, where some gradients are
    0.
    """
    random = torch.Generator().manual_seed(2)
    theta = METHODS[method](backbone, TEMPLATE).initial(CONTEXT, random)
    phi = initial_phi(
        theta, Regulator(input_scale="rms", bias=2.0, weight_std=0.02, bias_per_token=False), random
    )
    return tuple(
        {name: value.requires_grad_() for name, value in part.items()} for part in (theta, phi)
    )


def synchronise(shapes: Shapes) -> float:
    """The time, on the clock that was asked for, at which all work so far is done."""
    if shapes.device == "cuda":
        torch.cuda.synchronize()
    return time.process_time() if shapes.clock == "cpu" else time.perf_counter()


class Ours:
    """Several tasks in one call of `meta_gradient`."""

    def __init__(self, backbone: Backbone, name: str, shapes: Shapes) -> None:
        self.method, self.shapes = METHODS[name](backbone, TEMPLATE), shapes
        self.theta, self.phi = start(backbone, name)
        self.tasks = random_tasks(shapes, shapes.at_once[name])
        # the features are there before training starts: `stages/features.py`
        if not self.method.sees_pixels:
            with torch.no_grad():
                self.tasks = [
                    replace(
                        t,
                        **{
                            part: replace(
                                getattr(t, part),
                                pixels=backbone.model.encode_image(
                                    getattr(t, part).pixels, normalize=True
                                ),
                            )
                            for part in ("support", "query")
                        },
                    )
                    for t in self.tasks
                ]

    def run(self, numbers: list[int]) -> Result:
        """The mean meta-gradient of the tasks of these numbers."""
        began = synchronise(self.shapes)
        method, tasks = self.method, [self.tasks[i] for i in numbers]
        classes = method.prepare([t.names for t in tasks])
        support, query = (
            method.look(torch.stack([getattr(t, part).pixels for t in tasks]))
            for part in ("support", "query")
        )
        support_labels, query_labels = (
            torch.stack([getattr(t, part).labels for t in tasks]) for part in ("support", "query")
        )
        found = meta_gradient(
            self.theta,
            self.phi,
            len(tasks),
            lambda tokens: cross_entropy(method.logits(tokens, classes, support), support_labels),
            lambda tokens: method.logits(tokens, classes, query),
            query_labels,
            INNER,
        )
        return Result(
            {**found.theta, **found.phi}, synchronise(self.shapes) - began, 0.0, len(tasks)
        )


class Plain:
    """CLIP with learned tokens as prompt-learning code usually has it: open_clip's modules, 77
    positions, one task.
    """

    def __init__(self, backbone: Backbone) -> None:
        self.model, self.tokenize = backbone.model, backbone.tokenize

    def fixed_text(self, names: list[str]) -> Tensor:
        """(K, e) features of the hand-written template."""
        with torch.no_grad():
            return self.model.encode_text(
                self.tokenize([TEMPLATE.format(n) for n in names]).to(
                    self.model.logit_scale.device
                ),
                normalize=True,
            )

    def opened_text(self, names: list[str], count: int) -> tuple[Tensor, Tensor]:
        """(K, 77, d) embeddings with placeholders where `count` context tokens go, and (K,) end
        positions.
        """
        ids = self.tokenize([" ".join(["X"] * count) + f" {n}." for n in names]).to(
            self.model.logit_scale.device
        )
        return self.model.token_embedding(ids), ids.argmax(dim=-1)

    def prompted_text(self, context: Tensor, opened: Tensor, end: Tensor) -> Tensor:
        """(M, d) context in (K, 77, d) texts → (K, e)."""
        model, count = self.model, len(context)
        x = torch.cat(
            [opened[:, :1], context.expand(len(opened), -1, -1), opened[:, 1 + count :]], dim=1
        )
        x = model.ln_final(
            model.transformer(x + model.positional_embedding, attn_mask=model.attn_mask)
        )
        return F.normalize(
            x[torch.arange(len(x), device=x.device), end] @ model.text_projection, dim=-1
        )

    def prompted_pictures(self, tokens: Tensor, pixels: Tensor) -> Tensor:
        """(M, d) tokens behind the patches of (n, 3, h, w) pictures → (n, e)."""
        visual = self.model.visual
        x = visual._embeds(pixels)
        x = visual.transformer(torch.cat([x, visual.ln_pre(tokens).expand(len(x), -1, -1)], dim=1))
        return F.normalize(visual._pool(x)[0] @ visual.proj, dim=-1)

    def features(self, pixels: Tensor) -> Tensor:
        """(n, 3, h, w) → (n, e), without a gradient."""
        with torch.no_grad():
            return self.model.encode_image(pixels, normalize=True)

    def loss(self, tokens: Tokens, text, pictures: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of one task; `text` and `pictures` are features where the method learns
        no tokens there.
        """
        texts = self.prompted_text(tokens["text"], *text) if "text" in tokens else text
        seen = self.prompted_pictures(tokens["image"], pictures) if "image" in tokens else pictures
        return F.cross_entropy(self.model.logit_scale.exp() * seen @ texts.T, labels)


def inner_step(gradients: Tokens, phi: Phi) -> Tokens:
    """R^φ of one task's gradients (rows, d)."""
    return {
        name: g.squeeze(0)
        for name, g in regulate(
            phi, {name: g.unsqueeze(0) for name, g in gradients.items()}, INNER.input_scale
        ).items()
    }


def func_gradients(
    plain: Plain, theta: Tokens, phi: Phi, text, support: Part, query: Part
) -> dict[str, Tensor]:
    """One task's meta-gradient with nested `torch.func.grad`; a part's `pixels` may be features."""

    def after_step(theta: Tokens, phi: Phi) -> Tensor:
        gradients = torch.func.grad(plain.loss)(theta, text, support.pixels, support.labels)
        step = inner_step(gradients, phi)
        return plain.loss(
            {name: theta[name] - INNER.lr * step[name] for name in theta},
            text,
            query.pixels,
            query.labels,
        )

    of_theta, of_phi = torch.func.grad(after_step, argnums=(0, 1))(theta, phi)
    return {**of_theta, **of_phi}


class Prompt(nn.Module):
    """θ as a module, so that `higher` can follow its steps."""

    def __init__(self, plain: Plain, theta: Tokens) -> None:
        super().__init__()
        self.names = list(theta)
        self.loss = plain.loss
        for name, value in theta.items():
            self.register_parameter(name, nn.Parameter(value.detach().clone()))

    def forward(self, text, part: Part) -> Tensor:
        return self.loss(
            {name: getattr(self, name) for name in self.names}, text, part.pixels, part.labels
        )


def higher_gradients(
    plain: Plain, theta: Tokens, phi: Phi, text, support: Part, query: Part
) -> dict[str, Tensor]:
    """One task's meta-gradient with `higher`; the regulator is its callback on gradients."""
    import higher  # here: perf/gpu.py takes what is above it, on machines without the package

    prompt = Prompt(plain, theta)
    optimiser = torch.optim.SGD(prompt.parameters(), lr=INNER.lr)
    with higher.innerloop_ctx(prompt, optimiser, copy_initial_weights=False) as (adapted, steps):
        steps.step(
            adapted(text, support),
            grad_callback=lambda gradients: list(
                inner_step(dict(zip(theta, gradients)), phi).values()
            ),
        )
        found = torch.autograd.grad(adapted(text, query), [*prompt.parameters(), *phi.values()])
    return dict(zip([*theta, *phi], found))


class Peer:
    """One task after another; the mean of their meta-gradients."""

    def __init__(self, backbone: Backbone, name: str, shapes: Shapes, gradients) -> None:
        self.plain, self.shapes, self.gradients = Plain(backbone), shapes, gradients
        self.theta, self.phi = start(backbone, name)
        self.tasks = random_tasks(shapes, shapes.at_once[name])

    def _one(self, task: Task) -> tuple[dict[str, Tensor], float]:
        """A task's meta-gradient, and the seconds that its picture features took."""
        plain, support, query, began = (
            self.plain,
            task.support,
            task.query,
            synchronise(self.shapes),
        )
        if "image" not in self.theta:
            support, query = (
                Part(plain.features(part.pixels), part.labels) for part in (support, query)
            )
        encoding = synchronise(self.shapes) - began
        # the only form of attention that can be differentiated twice
        with sdpa_kernel(SDPBackend.MATH):
            text = (
                plain.opened_text(task.names, len(self.theta["text"]))
                if "text" in self.theta
                else plain.fixed_text(task.names)
            )
            return self.gradients(plain, self.theta, self.phi, text, support, query), encoding

    def run(self, numbers: list[int]) -> Result:
        began = synchronise(self.shapes)
        found = [self._one(self.tasks[i]) for i in numbers]
        mean = {
            name: torch.stack([gradients[name] for gradients, _ in found]).mean(dim=0)
            for name in found[0][0]
        }
        return Result(
            mean,
            synchronise(self.shapes) - began,
            sum(seconds for _, seconds in found),
            len(numbers),
        )


def runner(implementation: str, name: str, shapes: Shapes) -> Ours | Peer:
    backbone = random_backbone(shapes.device)
    if implementation == "ours":
        return Ours(backbone, name, shapes)
    return Peer(
        backbone, name, shapes, func_gradients if implementation == "func" else higher_gradients
    )


def peak_mib(device: str) -> float:
    """Largest resident memory of this process so far, or largest allocation on the GPU."""
    return (
        torch.cuda.max_memory_allocated() / 2**20
        if device == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    )


def serve(connection, implementation: str, name: str, shapes: Shapes) -> None:
    """A process's life: (task numbers, whether to count operations) → (result, operations); None
    → (MiB before the first run, peak MiB).
    """
    torch.set_num_threads(shapes.threads)
    runs = runner(implementation, name, shapes)
    before = peak_mib(shapes.device)
    while (wanted := connection.recv()) is not None:
        numbers, count = wanted
        with (
            torch.autocast(shapes.device, torch.bfloat16, enabled=shapes.bf16),
            FlopCounterMode(display=False) if count else nullcontext() as counter,
        ):
            result = runs.run(numbers)
        gradients = {k: v.detach().float().cpu().numpy() for k, v in result.gradients.items()}
        connection.send(
            (replace(result, gradients=gradients), counter.get_total_flops() if count else 0)
        )
    connection.send((before, peak_mib(shapes.device)))


class Process:
    """One implementation in a process of its own."""

    def __init__(self, implementation: str, name: str, shapes: Shapes) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.title = f"{implementation}, {name}"
        self.process = context.Process(
            target=serve, args=(other, implementation, name, shapes), daemon=True
        )
        self.process.start()
        other.close()

    def ask(self, numbers: list[int], count: bool = False) -> tuple[Result, int]:
        self.connection.send((numbers, count))
        try:
            return self.connection.recv()
        except EOFError:
            self.process.join()
            raise SystemExit(
                f"the process of '{self.title}' ended with {self.process.exitcode}; -9 means that "
                "memory ran out: take fewer --ways or --queries"
            ) from None

    def end(self) -> tuple[float, float]:
        self.connection.send(None)
        memory = self.connection.recv()
        self.process.join()
        return memory


def difference(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> float:
    """The largest relative error over θ and each part of φ."""
    return max(
        float(np.linalg.norm(ours[k] - theirs[k]) / np.linalg.norm(theirs[k])) for k in theirs
    )


@dataclass(frozen=True)
class Figures:
    """Of one method: seconds per task (rounds,) by implementation, and what else was measured."""

    seconds: dict[str, list[float]]
    encoding: dict[str, list[float]]
    memory: dict[str, tuple[float, float]]
    differences: dict[str, float]
    operations: int  # floating-point operations of ours for one task

    def faster_peer(self, without_pictures: bool = False) -> float:
        """Median seconds per task of the faster peer."""
        taken = {
            k: [s - e * without_pictures for s, e in zip(self.seconds[k], self.encoding[k])]
            for k in ("func", "higher")
        }
        return min(statistics.median(v) for v in taken.values())

    def ratio(self, without_pictures: bool = False) -> float:
        return self.faster_peer(without_pictures) / statistics.median(self.seconds["ours"])

    def ratio_by_round(self) -> list[float]:
        return [min(f, h) / o for o, f, h in zip(*(self.seconds[k] for k in IMPLEMENTATIONS))]


def measure(name: str, shapes: Shapes, rounds: int) -> Figures:
    """Checks that the gradients of task 0 agree, then times `rounds` rounds of all
    implementations in turn.
    """
    processes = {k: Process(k, name, shapes) for k in IMPLEMENTATIONS}
    reference, operations = processes["ours"].ask([0], count=True)
    seconds, encoding, differences = {k: [] for k in processes}, {k: [] for k in processes}, {}
    for number in range(rounds):
        for k, process in processes.items():
            result, _ = process.ask(
                list(range(shapes.at_once[name]))
                if k == "ours"
                else [number % shapes.at_once[name]]
            )
            seconds[k].append(result.seconds / result.tasks)
            encoding[k].append(result.encoding_seconds / result.tasks)
            if number == 0 and k != "ours":
                differences[k] = difference(reference.gradients, result.gradients)
    return Figures(
        seconds,
        encoding,
        {k: process.end() for k, process in processes.items()},
        differences,
        operations,
    )


def describe(name: str, figures: Figures, shapes: Shapes) -> None:
    """Prints a method's figures."""
    print(f"\n{TITLES[name]} ({name}), {shapes.at_once[name]} task(s) at once in ours", flush=True)
    print(
        "  gradients of θ and φ, largest relative error: "
        + ", ".join(f"{k} {v:.1e}" for k, v in figures.differences.items())
    )
    for k, values in figures.seconds.items():
        before, peak = figures.memory[k]
        print(
            f"  {k:7} {1 / statistics.median(values):8.3f} tasks/s  (s per task: median "
            f"{statistics.median(values):.3f}, {min(values):.3f} to {max(values):.3f}; "
            f"pictures without gradient {statistics.median(figures.encoding[k]):.3f})  peak "
            f"{peak:.0f} MiB, before the first run {before:.0f}"
        )
    by_round = figures.ratio_by_round()
    print(f"  ratio {figures.ratio():.2f}, by round {min(by_round):.2f} to {max(by_round):.2f}")
    achieved = figures.operations / statistics.median(figures.seconds["ours"]) / 1e12
    print(
        f"  ours: {figures.operations / 1e9:.0f} GFLOP per task, {achieved:.3f} "
        f"TFLOP/s{share_of_peak(achieved, shapes)}"
    )


def share_of_peak(achieved: float, shapes: Shapes) -> str:
    """What part of the device's peak it is, if that is known."""
    if shapes.device != "cuda":
        return ""
    device = torch.cuda.get_device_name()
    peaks = next((v for k, v in PEAKS.items() if k in device), None)
    return (
        f", {achieved / peaks[0 if shapes.bf16 else 1]:.0%} of the peak of {device}"
        if peaks
        else f" on {device}, whose peak is not in this script's table"
    )


def main() -> None:
    cli = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cli.add_argument("--methods", nargs="+", choices=list(TITLES), default=list(TITLES))
    cli.add_argument("--rounds", type=int, default=3)
    cli.add_argument("--ways", type=int, default=3, help="classes of a task")
    cli.add_argument("--shots", type=int, default=1, help="support pictures per class")
    cli.add_argument("--queries", type=int, default=1, help="query pictures per class")
    cli.add_argument(
        "--at-once",
        type=int,
        default=1,
        help="tasks in one call of ours where pictures go through the tower",
    )
    cli.add_argument("--at-once-textual", type=int, default=4, help="the same for cached features")
    cli.add_argument("--threads", type=int, default=torch.get_num_threads())
    cli.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="cpu: processor seconds, for a machine that others use too; with --threads 1",
    )
    cli.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    cli.add_argument("--bf16", action="store_true", help="autocast, in every implementation")
    args = cli.parse_args()
    at_once = {"coop": args.at_once_textual, "vpt": args.at_once, "joint": args.at_once}
    shapes = Shapes(
        args.ways,
        args.shots,
        args.queries,
        at_once,
        args.device,
        args.bf16,
        args.threads,
        args.clock,
    )
    print(
        f"ViT-B/16 of random weights, {CONTEXT} tokens, {args.ways}-way, {args.shots} support and "
        f"{args.queries} query picture(s) per class, second order, one inner step, "
        f"{args.device}, {'bf16' if args.bf16 else 'fp32'}, {args.threads} thread(s), "
        f"{args.clock} clock"
    )
    found, last = {}, {}
    for name in args.methods:
        figures = found[name] = measure(name, shapes, args.rounds)
        describe(name, figures, shapes)
        last[f"ratio_{TITLES[name]}"] = round(figures.ratio(), 3)
    if "coop" in found:
        last["ratio_textual_without_pictures"] = round(
            found["coop"].ratio(without_pictures=True), 3
        )
    last["tasks_per_second"] = {
        TITLES[n]: {k: round(1 / statistics.median(v), 4) for k, v in f.seconds.items()}
        for n, f in found.items()
    }
    last["peak_mib"] = {
        TITLES[n]: {k: round(v[1]) for k, v in f.memory.items()} for n, f in found.items()
    }
    last["largest_relative_error"] = {
        TITLES[n]: max(f.differences.values()) for n, f in found.items()
    }
    print(json.dumps(last))


if __name__ == "__main__":
    main()
