"""One run of a study: a method learned from episodes, then tuned, one seed for everything random.

    python stages/study_meta.py --name vpt_gram --seed 2 --episodes data/study/episodes \\
        --benchmarks data/benchmarks --out data/study/runs/vpt_gram/2
"""

import _repository  # noqa: F401, I001 — first: it sets the import path

import argparse
from pathlib import Path

from pipeline.artifacts import fingerprint, resumable_folder
from pipeline.benchmarks.judged import judged_files
from pipeline.clip.backbone import load_backbone
from pipeline.errors import naming
from pipeline.gram.learn import LEARNING, learn_start, save_curve
from pipeline.gram.params import Learning, MetaMethod
from pipeline.gram.train import Workplace
from pipeline.gram.trial import TRIAL, trial_of, tune_and_judge
from pipeline.params import load_params, settings_of
from pipeline.prompts.starts import START_FILES
from pipeline.stage import output, parser, run, seed_number, warn_of_left_overs
from pipeline.tracking.journal import keep, point

READS = {**LEARNING, **TRIAL, "method": ("study.methods.meta.{name}", MetaMethod)}


def arguments() -> argparse.Namespace:
    cli = parser(__doc__)
    cli.add_argument("--name", required=True, help="entry of study.methods.meta")
    cli.add_argument(
        "--seed",
        type=seed_number,
        required=True,
        help="of initial tokens, episodes and the few-shot draw",
    )
    cli.add_argument(
        "--episodes", type=Path, required=True, help="folder of episodes by entry and seed"
    )
    cli.add_argument("--benchmarks", type=Path, required=True, help="folder of benchmarks")
    cli.add_argument(
        "--batch", type=Path, required=True, help="JSON: what the method's tuning has of its own"
    )
    cli.add_argument(
        "--out",
        type=output,
        required=True,
        help=(
            "folder for a table of verdicts and one of accuracies per benchmark, curve.csv and "
            "the start"
        ),
    )
    return cli.parse_args()


def main():
    args = arguments()
    p = load_params(args.params, READS, name=args.name)
    warn_of_left_overs(args.benchmarks, p.templates)
    backbone = load_backbone(p.backbone.path)
    trial = trial_of(p, args.batch)
    episodes = args.episodes / p.method.episodes / str(args.seed)
    with (
        naming(f"{args.name}, seed {args.seed}"),
        resumable_folder(
            args.out,
            fingerprint(
                (p, args.name, args.seed, trial.tuning), episodes, args.benchmarks, p.backbone.path
            ),
            parts=[*START_FILES, "curve.csv", *judged_files(p.sources)],
        ) as work,
    ):
        place = Workplace(episodes, work, watch=point)
        start, curve = learn_start(backbone, p.method, settings_of(Learning, p), args.seed, place)
        save_curve(curve, work / "curve.csv")
        words = tune_and_judge(backbone, start, args.seed, trial, args.benchmarks, work, point)
        (work / "checkpoint.safetensors").unlink(missing_ok=True)
    keep(args.out.glob("*.csv"))
    return f"{args.name}, seed {args.seed}: {words}", {}, args.metrics


if __name__ == "__main__":
    run(main, tracked=True)
