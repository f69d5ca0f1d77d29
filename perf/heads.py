"""Memory and time of one tuning step under a head of many classes, its texts encoded in parts or
all at once.

    python perf/heads.py [--classes 1000] [--pictures 32] [--rounds 3]

CoOp on ViT-B/16 with random weights: 4 context tokens before names of five tokens, picture features
at random. `parts` is what the pipeline does: `pipeline.clip.text.TEXTS_AT_ONCE` texts at a time,
made again in the backward pass; `whole` sets that to the number of classes. CoCoOp, which has a
text for every picture and class, is measured in parts alone, with one picture: the reference's
batch. Each runs in a process of its own, which gives its peak memory; the gradients must agree.

The last line is JSON: `ratio` is the peak memory of a step, whole / parts; `time_ratio` the time of
a step, parts / whole.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import time

import torch
from meta_step import CONTEXT, random_backbone
from torch.nn import functional as F

from pipeline.clip import text
from pipeline.prompts import METHODS

COLOURS = ["red", "green", "blue", "black", "white", "brown", "grey", "pink", "orange", "purple"]
THINGS = ["dog", "cat", "bird", "fish", "horse", "truck", "boat", "plane", "train", "tower"]
PLACES = [
    "city",
    "forest",
    "desert",
    "river",
    "garden",
    "harbour",
    "mountain",
    "field",
    "village",
    "island",
]


def names_of(classes: int) -> list[str]:
    return [
        f"{COLOURS[i % 10]} {THINGS[i // 10 % 10]} of the {PLACES[i // 100 % 10]}"
        for i in range(classes)
    ]


def memory() -> float:
    """Peak of this process so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def steps(kind: str, prompt: str, classes: int, pictures: int, rounds: int, pipe) -> None:
    if kind == "whole":
        text.TEXTS_AT_ONCE = classes
    backbone = random_backbone("cpu")
    method, random = METHODS[prompt](backbone), torch.Generator().manual_seed(1)
    tokens = {
        name: value.unsqueeze(0).requires_grad_()
        for name, value in method.initial(CONTEXT, random, "a photo of a").items()
    }
    prepared, seen = (
        method.prepare([names_of(classes)]),
        F.normalize(torch.randn(1, pictures, backbone.dim, generator=random), dim=-1),
    )
    labels, before, seconds = torch.arange(pictures) % classes, memory(), []
    for _ in range(rounds):
        began = time.perf_counter()
        loss = F.cross_entropy(method.logits(tokens, prepared, seen)[0], labels)
        gradients = torch.autograd.grad(loss, list(tokens.values()))
        seconds.append(time.perf_counter() - began)
    pipe.send((statistics.median(seconds), memory() - before, [g.numpy() for g in gradients]))


def measured(*arguments) -> tuple[float, float, list]:
    """Median seconds of a step, MiB, and the gradients, from a process of its own."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=steps, args=(*arguments, theirs))
    child.start()
    theirs.close()
    found = ours.recv()
    child.join()
    return found


def main() -> None:
    cli = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (("classes", 1000), ("pictures", 32), ("rounds", 3)):
        cli.add_argument(f"--{name}", type=int, default=default)
    args = cli.parse_args()
    found = {}
    for kind, prompt, pictures in (
        ("parts", "coop", args.pictures),
        ("whole", "coop", args.pictures),
        ("parts", "cocoop", 1),
    ):
        found[kind, prompt] = measured(kind, prompt, args.classes, pictures, args.rounds)
        seconds, mib, _ = found[kind, prompt]
        print(
            f"{prompt}, {args.classes} classes, {pictures} picture(s), texts "
            f"{'in parts' if kind == 'parts' else 'at once'}: {seconds:.1f} s a step, "
            f"{mib:.0f} MiB",
            flush=True,
        )
    parts, whole = found["parts", "coop"], found["whole", "coop"]
    error = max(float(abs(a - b).max() / abs(b).max()) for a, b in zip(parts[2], whole[2]))
    print(
        json.dumps(
            {
                "ratio": round(whole[1] / parts[1], 3),
                "time_ratio": round(parts[0] / whole[0], 3),
                "mib_parts": round(parts[1]),
                "mib_whole": round(whole[1]),
                "mib_cocoop": round(found["parts", "cocoop"][1]),
                "relative_error": error,
            }
        )
    )


if __name__ == "__main__":
    main()
