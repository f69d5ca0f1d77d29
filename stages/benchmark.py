"""Reads a labelled benchmark, fixes its halves and few-shot draws, and caches the features of every view.

    python stages/benchmark.py --name animals --out data/benchmarks/animals

samples.parquet: every picture; test.parquet: features of the test pictures; views.parquet: features of
the drawn base pictures, one augmented view per seed and epoch; pictures.parquet: the files of both, for
methods that put tokens beside a picture's patches. All methods and seeds share them.
"""

import _repository  # noqa: F401, I001 — first: it sets the import path

from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from pipeline.artifacts import to_vectors, write_table
from pipeline.benchmarks.draw import draw_few_shot
from pipeline.benchmarks.params import Benchmark, FewShot
from pipeline.benchmarks.reader import Pictures, read_samples
from pipeline.benchmarks.schemas import PICTURES, SAMPLES, test_schema, views_schema
from pipeline.benchmarks.views import encode_test, encode_train
from pipeline.clip.backbone import load_backbone
from pipeline.clip.params import BackboneParams
from pipeline.params import load_params
from pipeline.stage import parser, progress, run, warn

READS = {
    "benchmark": ("benchmarks.{name}", Benchmark),
    "few_shot": ("few_shot", FewShot),
    "backbone": ("backbone", BackboneParams),
}


def main():
    cli = parser(__doc__)
    cli.add_argument("--name", required=True, help="entry of `benchmarks:`")
    cli.add_argument("--out", type=Path, required=True, help="folder for samples, test and views")
    args = cli.parse_args()
    p = load_params(args.params, READS, name=args.name)
    pictures = Pictures(p.benchmark.path)
    table = read_samples(pictures)
    samples = pl.from_arrow(table)
    train, test = samples.filter(pl.col("split") == "train"), samples.filter(pl.col("split") == "test")
    fewest = train.group_by("name").len().sort("len", "name").row(0)
    if fewest[1] < p.few_shot.shots:
        warn(f"{p.benchmark.path}: class '{fewest[0]}' has {fewest[1]} training pictures, fewer than the {p.few_shot.shots} of 'few_shot.shots'; all are taken")

    backbone = load_backbone(p.backbone.path)
    write_table(table, args.out / "samples.parquet", SAMPLES)
    features = encode_test(backbone, pictures, test["file"].to_list(), progress)
    columns = [test["index"].to_arrow(), to_vectors(features)]
    write_table(pa.table(columns, schema=test_schema(backbone.dim)), args.out / "test.parquet", test_schema(backbone.dim))

    schema, parts, shown = views_schema(backbone.dim), [], set(test["index"])
    for seed in p.few_shot.seeds:
        drawn = train[draw_few_shot(train["label"].to_list(), p.few_shot.shots, seed)].filter(pl.col("half") == "base")
        shown |= set(drawn["index"])
        views = encode_train(backbone, pictures, drawn["file"].to_list(), p.few_shot.epochs, seed, progress)
        epochs, count, dim = views.shape
        columns = [np.full(epochs * count, seed, np.int32), np.repeat(np.arange(epochs, dtype=np.int32), count), np.tile(drawn["index"].to_numpy(), epochs), to_vectors(views.reshape(-1, dim))]
        parts.append(pa.table([pa.array(c) if isinstance(c, np.ndarray) else c for c in columns], schema=schema))
    write_table(pa.concat_tables(parts), args.out / "views.parquet", schema)
    files = samples.filter(pl.col("index").is_in(sorted(shown))).sort("index")
    columns = [files["index"].to_arrow(), pa.array([pictures.read(f) for f in files["file"]], pa.binary())]
    write_table(pa.table(columns, schema=PICTURES), args.out / "pictures.parquet", PICTURES, row_group_size=1000)
    counts = {"classes": samples["label"].n_unique(), "train": len(train), "test": len(test), "views": sum(map(len, parts))}
    words = f"{args.name}: {counts['classes']} classes, {counts['train']} training and {counts['test']} test pictures; {counts['views']} training views for {len(p.few_shot.seeds)} seeds"
    return words, counts, args.metrics


if __name__ == "__main__":
    run(main)
