"""Tunes a method on a benchmark's base classes from its start, once per seed, keeping every epoch.

    python stages/tune.py --name animals --start data/starts/coop --benchmark data/benchmarks/animals \\
        --out data/tuned/animals/coop

Writes seed-N.safetensors with the tokens after every epoch. A method that learns nothing gives one
file without tensors.
"""

import _repository  # noqa: F401, I001 — first: it sets the import path

from pathlib import Path

import torch

from pipeline.benchmarks.cache import class_names, few_shots, samples_of
from pipeline.benchmarks.params import Benchmark, FewShot, Tuning
from pipeline.clip.backbone import load_backbone
from pipeline.clip.params import BackboneParams
from pipeline.gram.tune import tune
from pipeline.params import load_params
from pipeline.prompts.starts import load_start, method_of, save_tensors
from pipeline.stage import parser, progress, run

READS = {
    "benchmark": ("benchmarks.{name}", Benchmark),
    "few_shot": ("few_shot", FewShot),
    "tuning": ("tuning", Tuning),
    "backbone": ("backbone", BackboneParams),
}


def main():
    cli = parser(__doc__)
    cli.add_argument("--name", required=True, help="entry of `benchmarks:`")
    cli.add_argument("--start", type=Path, required=True, help="folder with the method's prompt and regulator")
    cli.add_argument("--benchmark", type=Path, required=True, help="folder with samples, views and pictures")
    cli.add_argument("--out", type=Path, required=True, help="folder for seed-N.safetensors")
    args = cli.parse_args()
    p = load_params(args.params, READS, name=args.name)
    start = load_start(args.start)
    about = {"prompt": start.prompt, "depth": str(start.depth)}
    if not start.theta:
        save_tensors({}, args.out / "seed-0.safetensors", **about)
        return f"{args.out}: '{start.prompt}' learns nothing", {}, args.metrics

    names = class_names(samples_of(args.benchmark), "base")
    method = method_of(about, load_backbone(p.backbone.path), p.benchmark.template)
    for seed in progress(p.few_shot.seeds, "seeds"):
        shots = few_shots(args.benchmark, method, seed)
        tuned = tune(method, start.theta, start.phi, start.input_scale, names, shots.views, shots.labels, p.tuning, seed)
        tensors = {f"epoch-{epoch:03d}/{m}": v for epoch, tokens in enumerate(tuned, 1) for m, v in tokens.items()}
        save_tensors(tensors, args.out / f"seed-{seed}.safetensors", **about)
        moved = torch.cat([(tuned[-1][m] - start.theta[m]).flatten() for m in start.theta]).norm().item()
    return f"{args.out}: {len(p.few_shot.seeds)} seeds, {len(names)} base classes, {len(shots.labels)} pictures; tokens moved by {moved:.3f} (last seed)", {}, args.metrics


if __name__ == "__main__":
    run(main)
