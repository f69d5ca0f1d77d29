"""One run of a study: a method tuned from its own initial tokens, one seed for everything random.

    python stages/study_direct.py --name vpt --seed 2 --benchmarks data/benchmarks \\
        --out data/study/runs/vpt/2
"""

import _repository  # noqa: F401, I001 — first: it sets the import path

from pathlib import Path

import torch

from pipeline.artifacts import fingerprint, resumable_folder
from pipeline.benchmarks.judged import judged_files
from pipeline.clip.backbone import load_backbone
from pipeline.errors import naming
from pipeline.gram.learn import initial_tokens
from pipeline.gram.params import Method, TokenCount
from pipeline.gram.trial import TRIAL, trial_of, tune_and_judge
from pipeline.params import load_params
from pipeline.prompts.starts import START_FILES, Start
from pipeline.stage import output, parser, run, seed_number, warn_of_left_overs
from pipeline.tracking.journal import keep, point

READS = {
    **TRIAL,
    "context_tokens": ("context_tokens", TokenCount),
    "method": ("study.methods.direct.{name}", Method),
}


def main():
    cli = parser(__doc__)
    cli.add_argument("--name", required=True, help="entry of study.methods.direct")
    cli.add_argument(
        "--seed", type=seed_number, required=True, help="of initial tokens and the few-shot draw"
    )
    cli.add_argument("--benchmarks", type=Path, required=True, help="folder of benchmarks")
    cli.add_argument(
        "--batch", type=Path, required=True, help="JSON: what the method's tuning has of its own"
    )
    cli.add_argument(
        "--out",
        type=output,
        required=True,
        help="folder for a table of verdicts and one of accuracies per benchmark, and the start",
    )
    args = cli.parse_args()
    p = load_params(args.params, READS, name=args.name)
    warn_of_left_overs(args.benchmarks, p.templates)
    backbone = load_backbone(p.backbone.path)
    trial = trial_of(p, args.batch)
    with (
        naming(f"{args.name}, seed {args.seed}"),
        resumable_folder(
            args.out,
            fingerprint((p, args.name, args.seed, trial.tuning), args.benchmarks, p.backbone.path),
            parts=[*START_FILES, *judged_files(p.sources)],
        ) as work,
    ):
        _, theta = initial_tokens(
            backbone, p.method, p.context_tokens, torch.Generator().manual_seed(args.seed)
        )
        start = Start(p.method.prompt, p.method.depth, theta, {}, "none")
        words = tune_and_judge(backbone, start, args.seed, trial, args.benchmarks, work, point)
    keep(args.out.glob("*.csv"))
    return f"{args.name}, seed {args.seed}: {words}", {}, args.metrics


if __name__ == "__main__":
    run(main, tracked=True)
