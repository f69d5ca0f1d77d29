"""Measures a tuned method on a benchmark: base classes, new classes, and their harmonic mean.

    python stages/evaluate.py --name animals --tuned data/tuned/animals/coop \\
        --benchmark data/benchmarks/animals --out data/scores/animals/coop

The base head holds the base names only, the new head the new ones. scores.parquet has every test
picture's verdict after the last epoch, epochs.csv the accuracy after each epoch.
"""

import _repository  # noqa: F401, I001 — first: it sets the import path

from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import torch

from pipeline.artifacts import from_vectors, read_table, replacing, vector_dim, write_table
from pipeline.benchmarks.params import Benchmark
from pipeline.benchmarks.schemas import SAMPLES, SCORES, test_schema
from pipeline.benchmarks.scores import accuracy_by_seed, summarise
from pipeline.clip.backbone import load_backbone
from pipeline.clip.params import BackboneParams
from pipeline.errors import InputError
from pipeline.params import load_params
from pipeline.prompts import METHODS
from pipeline.prompts.starts import load_tensors
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
    samples = pl.from_arrow(read_table(args.benchmark / "samples.parquet", SAMPLES))
    path = args.benchmark / "test.parquet"
    table = read_table(path, test_schema(vector_dim(path, "image")))
    test = samples[table["index"].to_numpy()]
    images = torch.from_numpy(from_vectors(table["image"]))
    files = sorted(args.tuned.glob("seed-*.safetensors"), key=lambda f: int(f.stem.removeprefix("seed-")))
    if not files:
        raise InputError(f"{args.tuned}: holds no seed-N.safetensors; `dvc repro` makes them")
    backbone = load_backbone(p.backbone.path)

    heads = {}
    for half in ("base", "new"):
        classes = samples.filter(pl.col("half") == half).select("label", "name").unique().sort("label")
        rows = np.flatnonzero((test["half"] == half).to_numpy())
        heads[half] = (classes["name"].to_list(), int(classes["label"][0]), rows)
    parts, epochs = [], []
    for file in progress(files, "seeds"):
        tensors, about = load_tensors(file)
        method = METHODS[about["prompt"]](backbone, p.benchmark.template)
        seed = int(file.stem.removeprefix("seed-"))
        steps = sorted({name.partition("/")[0] for name in tensors}) or ["epoch-000"]
        for half, (names, first, rows) in heads.items():
            classes = method.prepare([names])
            wanted = test["label"].to_numpy()[rows] - first
            for step in steps:
                tokens = {n.partition("/")[2]: v.unsqueeze(0).to(backbone.device) for n, v in tensors.items() if n.startswith(step)}
                with torch.inference_mode():
                    logits = method.logits(tokens, classes, images[rows].unsqueeze(0).to(backbone.device))
                predicted = logits[0].argmax(dim=-1).cpu().numpy()
                epochs.append((seed, int(step.partition("-")[2]), half, 100 * float((predicted == wanted).mean())))
            columns = [np.full(len(rows), seed), [half] * len(rows), table["index"].to_numpy()[rows], wanted, predicted]
            parts.append(pa.table([pa.array(c, type=f.type) for c, f in zip(columns, SCORES)], schema=SCORES))

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
