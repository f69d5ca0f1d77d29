"""Judges a tuned method on test pictures, under every protocol: base and new classes, other
domains, other datasets.

    python stages/evaluate.py --tuned data/tuned/coop --benchmarks data/benchmarks \\
        --out data/scores/coop

Each head holds its own names only: base, new, or all classes of the judged benchmark.
<source>.parquet has every test picture's verdict after the last epoch, <source>.csv base and new
accuracy after the epochs of `evaluate.curve_epochs`.
"""

import _repository  # noqa: F401, I001 — first: it sets the import path

from pathlib import Path
from types import SimpleNamespace

import polars as pl

from pipeline.artifacts import fingerprint, resumable_folder
from pipeline.benchmarks.evaluation import States, judge_source
from pipeline.benchmarks.headline import headline, in_words, rounded
from pipeline.benchmarks.judged import judged_files, read_epochs, read_verdicts, save_judged
from pipeline.benchmarks.params import Evaluate, PromptTemplate, Protocols, Seeds, Tunings
from pipeline.benchmarks.protocols import runs_of
from pipeline.clip.backbone import load_backbone
from pipeline.clip.params import BackboneParams
from pipeline.params import load_params
from pipeline.prompts.starts import method_of
from pipeline.prompts.tuned import load_tuned, tuned_path
from pipeline.stage import output, parser, progress, run, warn_of_left_overs
from pipeline.tracking.journal import keep, point

READS = {
    "protocols": ("protocols", dict[str, Protocols]),
    "templates": ("templates", dict[str, PromptTemplate]),
    "seeds": ("few_shot.seeds", Seeds),
    "evaluate": ("evaluate", Evaluate),
    "backbone": ("backbone", BackboneParams),
}


def states_of(
    protocols: Tunings, folder: Path, p: SimpleNamespace
) -> tuple[dict[str, States], dict[str, str]]:
    """What is judged of the tunings on a source: tokens after the last epoch, of those on base
    classes after `evaluate.curve_epochs` too; and which prompt method they are of.
    """
    states: dict[str, States] = {"base": {}, "all": {}}
    about: dict[str, str] = {}
    for classes, shots, seed in runs_of(protocols, p.seeds):
        tuned, about = load_tuned(tuned_path(folder / str(seed), classes, shots, seed))
        judged = {len(tuned)}
        if classes == "base":
            judged |= {e for e in p.evaluate.curve_epochs if e <= len(tuned)}
        states[classes] |= {(shots, seed, epoch): tuned[epoch - 1] for epoch in sorted(judged)}
    return states, about


def tell_epochs(epochs: pl.DataFrame) -> None:
    """Accuracy after every epoch that was judged, averaged over sources and seeds, for MLflow."""
    means = epochs.group_by("epoch", "head").agg(pl.col("top1").mean()).sort("epoch", "head")
    for epoch, head, top1 in means.iter_rows():
        point(epoch, **{f"top1/{head}": top1})


def main():
    cli = parser(__doc__)
    cli.add_argument(
        "--tuned",
        type=Path,
        required=True,
        help="folder by source and seed of <classes>-<shots>-<seed>.safetensors",
    )
    cli.add_argument("--benchmarks", type=Path, required=True, help="folder of benchmarks")
    cli.add_argument(
        "--out", type=output, required=True, help="folder for <source>.parquet and <source>.csv"
    )
    args = cli.parse_args()
    p = load_params(args.params, READS)
    warn_of_left_overs(args.benchmarks, p.templates)
    warn_of_left_overs(args.tuned, p.protocols)
    for name in p.protocols:
        warn_of_left_overs(args.tuned / name, map(str, p.seeds))
    backbone = load_backbone(p.backbone.path)
    made_of = fingerprint(p, args.tuned, args.benchmarks, p.backbone.path)
    with resumable_folder(args.out, made_of, parts=judged_files(p.protocols)) as work:
        for name, protocols in progress(p.protocols.items(), "sources"):
            if (work / f"{name}.parquet").exists():
                continue
            states, about = states_of(protocols, args.tuned / name, p)
            judged = judge_source(
                name,
                protocols,
                states,
                lambda benchmark: method_of(about, backbone, p.templates[benchmark]),
                args.benchmarks,
            )
            save_judged(judged, work, name)
    tell_epochs(read_epochs(args.out, p.protocols))
    keep(args.out.glob("*.csv"))
    figures = headline(read_verdicts(args.out, p.protocols), p.protocols)
    return f"{args.out}: {in_words(figures)}", rounded(figures), args.metrics


if __name__ == "__main__":
    run(main, tracked=True)
