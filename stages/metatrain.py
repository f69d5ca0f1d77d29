"""Meta-learns a method's initial tokens and its gradient regulator (Algorithm 1); resumes from its
checkpoint.

    python stages/metatrain.py --name coop_gram --episodes data/episodes/shifted \\
        --out data/starts/coop_gram

On several GPUs: torchrun --nproc-per-node 4 stages/metatrain.py …; each takes its share of every
batch.
"""

import _repository  # noqa: F401, I001 — first: it sets the import path

import argparse
from pathlib import Path

import polars as pl

from pipeline.artifacts import fingerprint, resumable_folder, write_json
from pipeline.clip.backbone import load_backbone
from pipeline.clip.params import BackboneParams
from pipeline.errors import naming
from pipeline.gram.learn import LEARNING, learn_start, save_curve
from pipeline.gram.params import Learning, MetaMethod
from pipeline.gram.serving import MODEL, PACKAGES, SIGNATURE
from pipeline.gram.train import Workplace
from pipeline.gram.validation import COLUMNS
from pipeline.params import Seed, load_params, settings_of
from pipeline.prompts.starts import START_FILES, digest_of, save_start
from pipeline.stage import first_process, output, parser, positive, run, warn
from pipeline.tracking.journal import keep, model, point

READS = {
    "meta_seed": ("meta_seed", Seed),
    **LEARNING,
    "backbone": ("backbone", BackboneParams),
    "method": ("methods.meta.{name}", MetaMethod),
}
HEADLINE = "validation_accuracy"  # what `dvc exp show` has of a training
TOO_EASY = 0.05  # nats: tasks solved before training teach neither θ nor φ anything


def arguments() -> argparse.Namespace:
    cli = parser(__doc__)
    cli.add_argument("--name", required=True, help="entry of methods.meta")
    cli.add_argument("--episodes", type=Path, required=True, help="folder of episode shards")
    cli.add_argument(
        "--out",
        type=output,
        required=True,
        help="folder for prompt.safetensors, regulator.safetensors, curve.csv",
    )
    cli.add_argument(
        "--validation",
        type=output,
        help="JSON: accuracy on validation tasks after adaptation, which trainings are compared by",
    )
    cli.add_argument(
        "--tasks-at-once",
        type=positive,
        help=(
            "tasks in one forward pass: less memory, same result (default: all with cached "
            "features, one with pictures)"
        ),
    )
    return cli.parse_args()


def main():
    args = arguments()
    p = load_params(args.params, READS, name=args.name)
    backbone = load_backbone(p.backbone.path)
    with (
        naming(args.name),
        resumable_folder(
            args.out,
            fingerprint((p, args.name), args.episodes, p.backbone.path),
            publish=first_process(),
            parts=[*START_FILES, "curve.csv"],
        ) as work,
    ):
        place = Workplace(args.episodes, work, args.tasks_at_once, watch=point)
        start, curve = learn_start(backbone, p.method, settings_of(Learning, p), p.meta_seed, place)
        if first_process():
            save_start(start, work)
            save_curve(curve, work / "curve.csv")
            (work / "checkpoint.safetensors").unlink(missing_ok=True)
    if first_process():  # the others may be here before `out` is
        keep(args.out.iterdir())
        folders = {"start": args.out, "backbone": p.backbone.path}
        model(MODEL, SIGNATURE, folders, PACKAGES, tags={"start": digest_of(args.out)})

    figures, judged = figures_of(curve), validation_figures(curve)
    if args.validation and first_process():
        write_json({args.name: {"validation": judged[HEADLINE]} if judged else {}}, args.validation)
    if figures["start_loss_first"] < TOO_EASY and first_process():
        warn(
            f"{args.name}: the query loss was {figures['start_loss_first']:.3f} before the first "
            "meta-step; such tasks teach nothing: raise 'ways' or 'confusable', or use pictures "
            "the backbone has not fitted"
        )
    trained = f"{args.name}: {len(curve)} meta-steps of {p.meta_batch} tasks"
    return f"{trained}; {in_words(figures, judged)}", figures | judged, args.metrics


def in_words(figures: dict[str, float], judged: dict[str, float]) -> str:
    """How the losses went, and what validation tasks say if there are any."""
    words = (
        f"loss before the first {figures['start_loss_first']:.3f}; query loss "
        f"{figures['query_loss_early']:.3f} in the first tenth, "
        f"{figures['query_loss_last']:.3f} in the last"
    )
    if judged:
        words += (
            f"; on validation tasks {judged['validation_start_accuracy']:.1f}% before adaptation, "
            f"{judged['validation_plain_accuracy']:.1f}% after it by plain gradients, "
            f"{judged['validation_accuracy']:.1f}% as trained"
        )
    return words


def figures_of(curve: list[dict]) -> dict[str, float]:
    """What there is to say of a training. One batch's loss says little (tasks differ), so tenths of
    the run are compared.
    """
    table = pl.DataFrame(curve, infer_schema_length=None)
    tenth, first = max(1, len(curve) // 10), curve[0]
    early, last = table.head(tenth), table.tail(tenth)
    before = first["start_loss"]
    figures = {
        # nothing is adapted without an inner step: the query loss is that of the start
        "start_loss_first": first["query_loss"] if before is None else before,
        "raw_gradient_rms_first": first["raw_rms"],
        "query_loss_early": early["query_loss"].mean(),
        "query_loss_last": last["query_loss"].mean(),
        "query_accuracy_last": 100 * last["query_accuracy"].mean(),
    }
    return _short(figures)


def validation_figures(curve: list[dict]) -> dict[str, float]:
    """Of what was kept, on validation tasks: losses in nats, accuracies in percent; {} without."""
    last = {name: curve[-1].get(name) for name in COLUMNS}
    return _short({k: v and v * (100 if k.endswith("accuracy") else 1) for k, v in last.items()})


def _short(figures: dict[str, float | None]) -> dict[str, float]:
    return {k: float(f"{v:.6g}") for k, v in figures.items() if v is not None}


if __name__ == "__main__":
    run(main, tracked=True)
