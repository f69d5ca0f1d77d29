"""Meta-learns a method's initial tokens and its gradient regulator (Algorithm 1); resumes from its
checkpoint.

    python stages/metatrain.py --name coop_gram --episodes data/episodes/shifted --out
    data/starts/coop_gram

On several GPUs: torchrun --nproc-per-node 4 stages/metatrain.py …; each takes its share of every
batch.
"""

import _repository  # noqa: F401, I001 — first: it sets the import path

from pathlib import Path

import polars as pl

from pipeline.artifacts import fingerprint, resumable_folder
from pipeline.clip.backbone import load_backbone
from pipeline.clip.params import BackboneParams
from pipeline.gram.learn import LEARNING, learn_start, save_curve
from pipeline.gram.params import MetaMethod
from pipeline.gram.serving import MODEL, PACKAGES, SIGNATURE
from pipeline.params import Seed, load_params
from pipeline.prompts.starts import save_start
from pipeline.stage import first_process, parser, progress, run, warn
from pipeline.tracking.journal import keep, model, point

READS = {
    "seed": ("seed", Seed),
    **LEARNING,
    "backbone": ("backbone", BackboneParams),
    "method": ("methods.meta.{name}", MetaMethod),
}
TOO_EASY = 0.05  # nats: tasks solved before training teach neither θ nor φ anything


def main():
    cli = parser(__doc__)
    cli.add_argument("--name", required=True, help="entry of methods.meta")
    cli.add_argument("--episodes", type=Path, required=True, help="folder of episode shards")
    cli.add_argument(
        "--out",
        type=Path,
        required=True,
        help="folder for prompt.safetensors, regulator.safetensors, curve.csv",
    )
    cli.add_argument(
        "--tasks-at-once",
        type=int,
        help=(
            "tasks in one forward pass: less memory, same result (default: all with cached "
            "features, one with pictures)"
        ),
    )
    args = cli.parse_args()
    p = load_params(args.params, READS, name=args.name)
    backbone = load_backbone(p.backbone.path)
    with resumable_folder(
        args.out,
        fingerprint((p, args.name), args.episodes, p.backbone.path),
        publish=first_process(),
    ) as work:
        start, curve = learn_start(
            backbone,
            p.method,
            args.episodes,
            work,
            seed=p.seed,
            context_tokens=p.context_tokens,
            inner_lr=p.inner_lr,
            inner_steps=p.inner_steps,
            regulator=p.regulator,
            outer=p.outer,
            outer_lr=p.outer_lr,
            regulator_lr=p.regulator_lr,
            meta_batch=p.meta_batch,
            meta_steps=p.meta_steps,
            progress=progress,
            watch=point,
            at_once=args.tasks_at_once,
        )
        if first_process():
            save_start(start, work)
            save_curve(curve, work / "curve.csv")
            (work / "checkpoint.safetensors").unlink(missing_ok=True)

    keep(args.out.iterdir())
    model(MODEL, SIGNATURE, {"start": args.out, "backbone": p.backbone.path}, PACKAGES)

    # One batch's loss says little (tasks differ), so the closing words compare tenths of the run.
    table = pl.DataFrame(curve, infer_schema_length=None)
    tenth = max(1, len(curve) // 10)
    early, last = table.head(tenth), table.tail(tenth)
    before = curve[0]["query_loss"] if p.method.algorithm == "pretrain" else curve[0]["start_loss"]
    if before < TOO_EASY:
        warn(
            f"{args.name}: the query loss was {before:.3f} before the first meta-step; such tasks "
            "teach nothing: raise 'ways' or 'confusable', or use pictures the backbone has "
            "not fitted"
        )
    figures = {
        "start_loss_first": before,
        "raw_gradient_rms_first": curve[0]["raw_rms"],
        "query_loss_early": early["query_loss"].mean(),
        "query_loss_last": last["query_loss"].mean(),
        "query_accuracy_last": 100 * last["query_accuracy"].mean(),
    }
    figures = {k: float(f"{v:.6g}") for k, v in figures.items() if v is not None}
    words = (
        f"{args.name}: {len(curve)} meta-steps of {p.meta_batch} tasks; loss before the first "
        f"{before:.3f}; query loss {figures['query_loss_early']:.3f} in the first tenth, "
        f"{figures['query_loss_last']:.3f} in the last"
    )
    return words, figures, args.metrics


if __name__ == "__main__":
    run(main, tracked=True)
