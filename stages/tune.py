"""Tunes a method on a benchmark's base classes from its start, once per seed, keeping every epoch.

    python stages/tune.py --start data/starts/coop --benchmark data/benchmarks/animals --out data/tuned/animals/coop

Writes seed-N.safetensors with the tokens after every epoch. A method that learns nothing gives one
file without tensors.
"""

import _repository  # noqa: F401, I001 — first: it sets the import path

from pathlib import Path

import numpy as np
import polars as pl
import torch

from pipeline.artifacts import from_vectors, read_table, vector_dim
from pipeline.benchmarks.params import FewShot, Tuning
from pipeline.benchmarks.schemas import SAMPLES, views_schema
from pipeline.clip.backbone import load_backbone
from pipeline.clip.params import BackboneParams
from pipeline.errors import InputError
from pipeline.gram.tune import tune
from pipeline.params import load_params
from pipeline.prompts import METHODS
from pipeline.prompts.starts import load_start, save_tensors
from pipeline.stage import parser, progress, run

READS = {
    "few_shot": ("few_shot", FewShot),
    "tuning": ("tuning", Tuning),
    "backbone": ("backbone", BackboneParams),
}


def main():
    cli = parser(__doc__)
    cli.add_argument("--start", type=Path, required=True, help="folder with the method's prompt and regulator")
    cli.add_argument("--benchmark", type=Path, required=True, help="folder with samples and views")
    cli.add_argument("--out", type=Path, required=True, help="folder for seed-N.safetensors")
    args = cli.parse_args()
    p = load_params(args.params, READS)
    start = load_start(args.start)
    if not start.theta:
        save_tensors({}, args.out / "seed-0.safetensors", prompt=start.prompt)
        return f"{args.out}: '{start.prompt}' learns nothing", {}, args.metrics

    samples = pl.from_arrow(read_table(args.benchmark / "samples.parquet", SAMPLES))
    base = samples.filter(pl.col("half") == "base").select("label", "name").unique().sort("label")
    label_of = dict(samples.select("index", "label").iter_rows())
    path = args.benchmark / "views.parquet"
    views = read_table(path, views_schema(vector_dim(path, "image")))
    seeds, epochs, images = views["seed"].to_numpy(), views["epoch"].to_numpy(), from_vectors(views["image"])
    method = METHODS[start.prompt](load_backbone(p.backbone.path))
    for seed in progress(p.few_shot.seeds, "seeds"):
        rows = seeds == seed
        if not rows.any():
            raise InputError(f"{path}: has no views for seed {seed} of 'few_shot.seeds'; run `dvc repro` so that the benchmark stage draws them")
        count = int((rows & (epochs == 0)).sum())
        labels = np.array([label_of[i] for i in views["index"].to_numpy()[rows][:count]])
        by_epoch = images[rows].reshape(-1, count, images.shape[1])
        tuned = tune(method, start.theta, start.phi, start.input_scale, base["name"].to_list(), by_epoch, labels, p.tuning, seed)
        tensors = {f"epoch-{epoch:03d}/{m}": v for epoch, tokens in enumerate(tuned, 1) for m, v in tokens.items()}
        save_tensors(tensors, args.out / f"seed-{seed}.safetensors", prompt=start.prompt)
        moved = torch.cat([(tuned[-1][m] - start.theta[m]).flatten() for m in start.theta]).norm().item()
    return f"{args.out}: {len(p.few_shot.seeds)} seeds, {len(base)} base classes, {count} pictures; tokens moved by {moved:.3f} (last seed)", {}, args.metrics


if __name__ == "__main__":
    run(main)
