"""Tunes a method on a benchmark from its start with one seed, once per number of shots, keeping
every epoch.

    python stages/tune.py --name animals --seed 1 --start data/starts/coop \\
        --benchmark data/benchmarks/animals --batch data/batches/coop.json \\
        --out data/tuned/coop/animals/1

Writes <classes>-<shots>-<seed>.safetensors with the tokens after every epoch: tuned on the base or
on all classes.
"""

import _repository  # noqa: F401, I001 — first: it sets the import path

import argparse
from pathlib import Path

import torch

from pipeline.artifacts import fingerprint, read_json, resumable_folder
from pipeline.benchmarks.cache import few_shots
from pipeline.benchmarks.params import PromptTemplate, Rates, Tunings, sgd_of
from pipeline.benchmarks.protocols import runs_of
from pipeline.clip.backbone import load_backbone
from pipeline.clip.params import BackboneParams
from pipeline.errors import naming
from pipeline.gram.tune import tune, warn_of_single_steps
from pipeline.params import load_params
from pipeline.prompts.starts import load_start, method_of
from pipeline.prompts.tuned import load_tuned, save_tuned, tuned_path
from pipeline.stage import output, parser, progress, run, seed_number
from pipeline.tracking.journal import keep, point

READS = {
    "protocols": ("protocols.{name}", Tunings),
    "template": ("templates.{name}", PromptTemplate),
    "rates": ("tuning", Rates),
    "backbone": ("backbone", BackboneParams),
}


def arguments() -> argparse.Namespace:
    cli = parser(__doc__)
    cli.add_argument("--name", required=True, help="entry of `protocols:`")
    cli.add_argument(
        "--seed", type=seed_number, required=True, help="of the few-shot draw and its tuning"
    )
    cli.add_argument(
        "--start", type=Path, required=True, help="folder with the method's prompt and regulator"
    )
    cli.add_argument(
        "--benchmark", type=Path, required=True, help="folder with samples, views and pictures"
    )
    cli.add_argument(
        "--batch", type=Path, required=True, help="JSON: what the method's tuning has of its own"
    )
    cli.add_argument(
        "--out", type=output, required=True, help="folder for <classes>-<shots>-<seed>.safetensors"
    )
    return cli.parse_args()


def main():
    args = arguments()
    p = load_params(args.params, READS, name=args.name)
    start = load_start(args.start)
    method = method_of(start.about, load_backbone(p.backbone.path), p.template)
    runs = runs_of(p.protocols, [args.seed])
    settings, images = sgd_of(p.rates, read_json(args.batch)), {}
    with resumable_folder(
        args.out,
        fingerprint(
            (p, args.name, args.seed, settings), args.start, args.benchmark, p.backbone.path
        ),
        parts=[tuned_path(Path(), *run_).name for run_ in runs],
    ) as work:
        for run_ in progress(runs, "runs"):
            path = tuned_path(work, *run_)
            if not path.exists():
                draw, curve = few_shots(args.benchmark, method, *run_), f"loss/{path.stem}"
                called = f"{args.name}, {run_.shots} shots of {run_.classes} classes"
                images[called] = len(draw.labels)
                told = lambda epoch, loss, curve=curve: point(epoch, **{curve: loss})
                with naming(f"{args.start.name} on {args.name}, {run_}"):
                    tuned = tune(method, start, draw, settings, run_.seed, told)
                save_tuned(tuned, path, start.about)
    warn_of_single_steps(start.prompt, settings.batch, images)
    keep(args.out.iterdir())
    last = load_tuned(tuned_path(args.out, *runs[-1]))[0][-1]
    moved = torch.cat([(last[m] - start.theta[m]).flatten() for m in start.theta]).norm().item()
    words = ", ".join(
        f"{shots} shots of {classes} classes"
        for classes, shots in dict.fromkeys(run_[:2] for run_ in runs)
    )
    return (
        f"{args.out}: {words}, seed {args.seed}; tokens moved by {moved:.3f} (last run)",
        {},
        args.metrics,
    )


if __name__ == "__main__":
    run(main, tracked=True)
