"""Measures a tuned method on a benchmark: base classes, new classes, and their harmonic mean.

    python stages/evaluate.py --name animals --tuned data/tuned/animals/coop \\
        --benchmark data/benchmarks/animals --out data/scores/animals/coop

The base head holds the base names only, the new head the new ones. scores.parquet has every test
picture's verdict after the last epoch, epochs.csv the accuracy after each epoch.
"""

import _repository  # noqa: F401, I001 — first: it sets the import path

from pathlib import Path

import polars as pl
import pyarrow as pa

from pipeline.artifacts import replacing, write_table
from pipeline.benchmarks.evaluation import judge, scores_table
from pipeline.benchmarks.params import Benchmark
from pipeline.benchmarks.schemas import SCORES
from pipeline.benchmarks.scores import accuracy_by_seed, summarise
from pipeline.clip.backbone import load_backbone
from pipeline.clip.params import BackboneParams
from pipeline.errors import InputError
from pipeline.params import load_params
from pipeline.prompts.starts import load_tensors, method_of
from pipeline.stage import parser, progress, run

READS = {"benchmark": ("benchmarks.{name}", Benchmark), "backbone": ("backbone", BackboneParams)}


def main():
    cli = parser(__doc__)
    cli.add_argument("--name", required=True, help="entry of `benchmarks:`")
    cli.add_argument("--tuned", type=Path, required=True, help="folder of seed-N.safetensors")
    cli.add_argument("--benchmark", type=Path, required=True, help="folder with samples and test features")
    cli.add_argument("--out", type=Path, required=True, help="folder for scores.parquet and epochs.csv")
    args = cli.parse_args()
    p = load_params(args.params, READS, name=args.name)
    files = sorted(args.tuned.glob("seed-*.safetensors"), key=lambda f: int(f.stem.removeprefix("seed-")))
    if not files:
        raise InputError(f"{args.tuned}: holds no seed-N.safetensors; `dvc repro` makes them")
    backbone = load_backbone(p.backbone.path)

    parts, epochs = [], []
    for file in progress(files, "seeds"):
        tensors, about = load_tensors(file)
        seed = int(file.stem.removeprefix("seed-"))
        states = {"epoch-000": {}} if not tensors else {}
        for name, values in tensors.items():
            epoch, _, learned = name.partition("/")
            states.setdefault(epoch, {})[learned] = values
        method = method_of(about, backbone, p.benchmark.template)
        for half in ("base", "new"):
            index, wanted, predicted = judge(method, args.benchmark, states, half)
            for epoch in sorted(states):
                epochs.append((seed, int(epoch.partition("-")[2]), half, 100 * float((predicted[epoch] == wanted).mean())))
            parts.append(scores_table(seed, half, index, wanted, predicted[max(states)]))

    scores = pa.concat_tables(parts)
    write_table(scores, args.out / "scores.parquet", SCORES)
    with replacing(args.out / "epochs.csv") as temporary:
        pl.DataFrame(epochs, schema=["seed", "epoch", "half", "top1"], orient="row").write_csv(temporary, float_precision=4)
    by_half = accuracy_by_seed(pl.from_arrow(scores))
    figures = summarise(by_half["base"], by_half["new"])
    shown = ", ".join(f"{k} {figures[k]:.2f}" + (f" ± {figures[f'{k}_sd']:.2f}" if figures["seeds"] > 1 else "") for k in ("base", "new", "H"))
    words = f"{args.out}: {shown} (%, seeds: {figures['seeds']})"
    return words, {k: round(figures[k], 4) for k in ("base", "new", "H")}, args.metrics


if __name__ == "__main__":
    run(main)
