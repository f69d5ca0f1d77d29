"""One run of a study: a method learned, tuned and judged on every benchmark with one seed for everything random.

    python stages/study.py --kind meta --name vpt_gram --seed 2 --episodes data/study/episodes --benchmarks data/benchmarks \
        --out data/study/runs/vpt_gram/2

Writes scores.parquet (every test picture's verdict), epochs.csv, the learned start, and curve.csv if
the start was learned from episodes. The few-shot draw is `few_shot.seeds[seed − 1]`, in turn.
"""

import _repository  # noqa: F401, I001 — first: it sets the import path

from pathlib import Path

import polars as pl
import pyarrow as pa
import torch

from pipeline.artifacts import fingerprint, replacing, resumable_folder, write_table
from pipeline.benchmarks.cache import class_names, few_shots, samples_of
from pipeline.benchmarks.evaluation import judge, scores_table
from pipeline.benchmarks.params import Benchmark, FewShot, Tuning
from pipeline.benchmarks.schemas import STUDY_SCORES
from pipeline.benchmarks.scores import averages
from pipeline.clip.backbone import load_backbone
from pipeline.clip.params import BackboneParams
from pipeline.gram.learn import LEARNING, initial_tokens, learn_start, save_curve
from pipeline.gram.params import MetaMethod, Method
from pipeline.gram.tune import tune
from pipeline.params import load_params
from pipeline.prompts.starts import Start, method_of, save_start
from pipeline.stage import parser, progress, run

READS = {
    **LEARNING,
    "backbone": ("backbone", BackboneParams),
    "benchmarks": ("benchmarks", dict[str, Benchmark]),
    "few_shot": ("few_shot", FewShot),
    "tuning": ("tuning", Tuning),
    "method": ("study.methods.{kind}.{name}", MetaMethod | Method),
}


def main():
    cli = parser(__doc__)
    cli.add_argument("--kind", choices=("direct", "meta"), required=True, help="tuned from its own tokens, or learned from episodes first")
    cli.add_argument("--name", required=True, help="entry of study.methods.<kind>")
    cli.add_argument("--seed", type=int, required=True, help="of initial tokens, episodes and the few-shot draw")
    cli.add_argument("--episodes", type=Path, help="folder of episodes by entry and seed (meta only)")
    cli.add_argument("--benchmarks", type=Path, required=True, help="folder of benchmarks")
    cli.add_argument("--out", type=Path, required=True, help="folder for scores, epochs, start and curve")
    args = cli.parse_args()
    if args.kind == "meta" and args.episodes is None:
        cli.error("--kind meta needs --episodes")
    p = load_params(args.params, READS, kind=args.kind, name=args.name)
    backbone = load_backbone(p.backbone.path)
    draw = p.few_shot.seeds[(args.seed - 1) % len(p.few_shot.seeds)]

    episodes = [args.episodes / p.method.episodes / str(args.seed)] if args.kind == "meta" else []
    with resumable_folder(args.out, fingerprint((p, args.name, args.seed), *episodes, p.backbone.path)) as work:
        if args.kind == "meta":
            start, curve = learn_start(
                backbone, p.method, episodes[0], work, seed=args.seed, context_tokens=p.context_tokens, inner_lr=p.inner_lr,
                inner_steps=p.inner_steps, regulator=p.regulator, outer=p.outer, outer_lr=p.outer_lr, regulator_lr=p.regulator_lr, meta_batch=p.meta_batch,
                meta_steps=p.meta_steps, progress=progress,
            )
            save_curve(curve, work / "curve.csv")
        else:
            _, theta = initial_tokens(backbone, p.method, p.context_tokens, torch.Generator().manual_seed(args.seed))
            start = Start(p.method.prompt, p.method.depth, theta, {}, "none")
        save_start(start, work)

        parts, epochs = [], []
        for name, benchmark in progress(p.benchmarks.items(), "benchmarks"):
            folder = args.benchmarks / name
            method = method_of({"prompt": start.prompt, "depth": str(start.depth)}, backbone, benchmark.template)
            states = {0: start.theta}
            if start.theta:
                shots = few_shots(folder, method, draw)
                tuned = tune(method, start.theta, start.phi, start.input_scale, class_names(samples_of(folder), "base"), shots.views, shots.labels, p.tuning, draw)
                states |= dict(enumerate(tuned, 1))
            for half in ("base", "new"):
                index, wanted, predicted = judge(method, folder, states, half)
                epochs += [(name, epoch, half, 100 * float((found == wanted).mean())) for epoch, found in predicted.items()]
                parts.append(scores_table(args.seed, half, index, wanted, predicted[max(states)]).append_column("benchmark", pa.array([name] * len(index))))
        write_table(pa.concat_tables(parts), work / "scores.parquet", STUDY_SCORES)
        with replacing(work / "epochs.csv") as temporary:
            pl.DataFrame(epochs, schema=["benchmark", "epoch", "half", "top1"], orient="row").write_csv(temporary, float_precision=4)
        (work / "checkpoint.safetensors").unlink(missing_ok=True)
    found = averages(pl.from_arrow(pa.concat_tables(parts)))
    return f"{args.name}, seed {args.seed}: base {found['base']:.2f}, new {found['new']:.2f}, H {found['H']:.2f} (%, average of {len(p.benchmarks)} benchmarks)", {}, args.metrics


if __name__ == "__main__":
    run(main)
