"""Reads a labelled benchmark, fixes its halves and few-shot draws, and caches the features of every
view.

    python stages/benchmark.py --name animals --out data/benchmarks/animals

samples.parquet: every picture; test.parquet: features of the test pictures; views.parquet: features
of the drawn pictures, one augmented view per draw and epoch; pictures.parquet: the files of both,
for methods that put tokens beside a picture's patches. All methods and seeds share them.
"""

import _repository  # noqa: F401, I001 — first: it sets the import path

from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from pipeline.artifacts import to_vectors, write_json, write_parts, write_table
from pipeline.benchmarks.cache import class_names
from pipeline.benchmarks.draw import draw_few_shot
from pipeline.benchmarks.layouts import read_benchmark
from pipeline.benchmarks.layouts.imagenet import IMAGENETS
from pipeline.benchmarks.params import Benchmark, Count, Seeds
from pipeline.benchmarks.schemas import PICTURES, SAMPLES, test_schema, views_schema
from pipeline.benchmarks.sound import check_shots, remarks
from pipeline.benchmarks.views import encode_test, encode_train
from pipeline.clip.backbone import load_backbone
from pipeline.clip.params import BackboneParams
from pipeline.params import load_params
from pipeline.prompts.base import check_prompts
from pipeline.stage import parser, progress, run, warn, warn_of_other_files

# As long as the usual context. The benchmark's own template may be longer: whoever makes prompts of
# it checks them, so that another one encodes no picture again.
FOUR_TOKENS = "a photo of a {}."

READS = {
    "benchmark": ("benchmarks.{name}", Benchmark),
    "draws": ("few_shot.draws", Seeds),
    "epochs": ("few_shot.epochs", Count),
    "backbone": ("backbone", BackboneParams),
}


def main():
    cli = parser(__doc__)
    cli.add_argument("--name", required=True, help="entry of `benchmarks:`")
    cli.add_argument(
        "--out",
        type=Path,
        required=True,
        help="folder for samples, test features, views and pictures",
    )
    args = cli.parse_args()
    p = load_params(args.params, READS, name=args.name)
    b = p.benchmark
    dataset = read_benchmark(b.layout, b.path, b.domains, b.split)
    samples, pictures = pl.from_arrow(dataset.samples), dataset.pictures
    train, test = (samples.filter(pl.col("split") == split) for split in ("train", "test"))
    wanted = [
        (classes, shots, seed)
        for classes, numbers in b.shots
        for shots in numbers
        for seed in p.draws
    ]
    check_shots(args.name, b, samples)
    for remark in remarks(args.name, b, dataset):
        warn(remark)
    if dataset.split == "own":
        warn_of_other_files(pictures.path, pictures.passed_over)

    backbone = load_backbone(p.backbone.path)
    if b.layout not in IMAGENETS:  # the field lives with its names (docs/benchmarks.md)
        check_prompts(backbone, class_names(samples, "all"), FOUR_TOKENS, b.path)
    write_table(dataset.samples, args.out / "samples.parquet", SAMPLES)
    write_json({"split": dataset.split}, args.out / "about.json")
    features = encode_test(backbone, pictures, test["file"].to_list(), progress)
    columns = [test["index"].to_arrow(), to_vectors(features)]
    write_table(
        pa.table(columns, schema=test_schema(backbone.dim)),
        args.out / "test.parquet",
        test_schema(backbone.dim),
    )

    schema, parts, shown = views_schema(backbone.dim), [], set(test["index"])
    for classes, shots, seed in wanted:
        drawn = train[draw_few_shot(train["label"].to_list(), shots, seed)]
        drawn = drawn if classes == "all" else drawn.filter(pl.col("half") == "base")
        shown |= set(drawn["index"])
        views = encode_train(backbone, pictures, drawn["file"].to_list(), p.epochs, seed, progress)
        epochs, count, dim = views.shape
        n = epochs * count
        columns = [
            [classes] * n,
            np.full(n, shots, np.int32),
            np.full(n, seed, np.int32),
            np.repeat(np.arange(epochs, dtype=np.int32), count),
            np.tile(drawn["index"].to_numpy(), epochs),
            to_vectors(views.reshape(-1, dim)),
        ]
        parts.append(
            pa.table(
                [c if isinstance(c, pa.Array) else pa.array(c) for c in columns], schema=schema
            )
        )
    write_table(
        pa.concat_tables(parts) if parts else schema.empty_table(),
        args.out / "views.parquet",
        schema,
    )
    files = samples.filter(pl.col("index").is_in(sorted(shown))).sort("index")
    groups = (
        pa.table(
            [
                part["index"].to_arrow(),
                pa.array([pictures.read(f) for f in part["file"]], pa.binary()),
            ],
            schema=PICTURES,
        )
        for part in files.iter_slices(1000)
    )
    write_parts(groups, args.out / "pictures.parquet", PICTURES)
    counts = {
        "classes": samples["label"].n_unique(),
        "train": len(train),
        "test": len(test),
        "views": sum(map(len, parts)),
    }
    words = (
        f"{args.name}: {counts['classes']} classes, {counts['train']} training and "
        f"{counts['test']} test pictures; {counts['views']} training views of {len(wanted)} draws"
    )
    return words, counts, args.metrics


if __name__ == "__main__":
    run(main)
