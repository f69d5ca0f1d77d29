"""Meta-learns a method's initial tokens and its gradient regulator (Algorithm 1); resumes from its checkpoint.

    python stages/metatrain.py --name coop_gram --episodes data/episodes/shifted --out data/starts/coop_gram
"""

import _repository  # noqa: F401, I001 — first: it sets the import path

from pathlib import Path

import polars as pl
import torch

from pipeline.artifacts import fingerprint, replacing, resumable_folder
from pipeline.clip.backbone import load_backbone
from pipeline.clip.params import BackboneParams
from pipeline.gram.meta import InnerStep
from pipeline.gram.params import Count, MetaMethod, Outer, Rate, Regulator, TokenCount
from pipeline.gram.regulator import initial_phi
from pipeline.gram.train import meta_train
from pipeline.params import load_params
from pipeline.prompts import METHODS
from pipeline.prompts.starts import Start, save_start
from pipeline.stage import parser, progress, run, warn

READS = {
    "seed": ("seed", int),
    "context_tokens": ("context_tokens", TokenCount),
    "inner_lr": ("inner_lr", Rate),
    "inner_steps": ("inner_steps", Count),
    "outer_lr": ("outer_lr", Rate),
    "regulator_lr": ("regulator_lr", Rate),
    "meta_batch": ("meta_batch", Count),
    "meta_steps": ("meta_steps", Count),
    "regulator": ("regulator", Regulator),
    "outer": ("outer", Outer),
    "backbone": ("backbone", BackboneParams),
    "method": ("methods.meta.{name}", MetaMethod),
}
TOO_EASY = 0.05  # nats: tasks solved before training teach neither θ nor φ anything


def main():
    cli = parser(__doc__)
    cli.add_argument("--name", required=True, help="entry of methods.meta")
    cli.add_argument("--episodes", type=Path, required=True, help="folder of episode shards")
    cli.add_argument("--out", type=Path, required=True, help="folder for prompt.safetensors, regulator.safetensors, curve.csv")
    args = cli.parse_args()
    p = load_params(args.params, READS, name=args.name)
    method = METHODS[p.method.prompt](load_backbone(p.backbone.path))
    theta = method.initial(p.context_tokens, torch.Generator().manual_seed(p.seed))
    phi = initial_phi(theta, p.regulator) if p.method.regulator == "affine" else {}
    for leaf in (*theta.values(), *phi.values()):
        leaf.requires_grad_()
    inner = InnerStep(p.inner_lr, p.inner_steps, p.method.order == "second", p.regulator.input_scale)
    with resumable_folder(args.out, fingerprint((p, args.name), args.episodes, p.backbone.path)) as work:
        curve = meta_train(
            method, theta, phi, args.episodes, work, inner=inner, outer=p.outer, outer_lr=p.outer_lr,
            regulator_lr=p.regulator_lr, batch=p.meta_batch, steps=p.meta_steps, progress=progress,
        )
        save_start(Start(p.method.prompt, theta, phi, p.regulator.input_scale), work)
        with replacing(work / "curve.csv") as temporary:
            pl.DataFrame(curve).write_csv(temporary, float_precision=6)
        (work / "checkpoint.safetensors").unlink(missing_ok=True)

    # One batch's loss says little (tasks differ), so the closing words compare tenths of the run.
    first, tenth = curve[0], max(1, len(curve) // 10)
    early, last = pl.DataFrame(curve[:tenth]), pl.DataFrame(curve[-tenth:])
    if first["start_loss"] < TOO_EASY:
        warn(f"{args.name}: the query loss was {first['start_loss']:.3f} before the first meta-step; such tasks teach nothing: raise 'ways' or 'confusable', or use pictures the backbone has not fitted")
    figures = {
        "start_loss_first": first["start_loss"], "raw_gradient_rms_first": first["raw_rms"],
        "query_loss_early": early["query_loss"].mean(), "query_loss_last": last["query_loss"].mean(),
        "query_accuracy_last": 100 * last["query_accuracy"].mean(),
    }
    figures = {k: float(f"{v:.6g}") for k, v in figures.items()}
    words = f"{args.name}: {len(curve)} meta-steps of {p.meta_batch} tasks; query loss after adaptation {figures['query_loss_early']:.3f} in the first tenth, {figures['query_loss_last']:.3f} in the last; before the first step {first['start_loss']:.3f}, raw gradient RMS {first['raw_rms']:.1e}"
    return words, figures, args.metrics


if __name__ == "__main__":
    run(main)
