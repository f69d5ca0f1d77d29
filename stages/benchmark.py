"""Reads a labelled benchmark, fixes its halves and few-shot draws, and caches the features of every
view.

    python stages/benchmark.py --name animals --out data/benchmarks/animals

samples.parquet: every picture; test.parquet: features of the test pictures; views.parquet: features
of the drawn pictures, one augmented view per draw and epoch; pictures.parquet: the files of both,
for methods that put tokens beside a picture's patches. All methods and seeds share them. An
interrupted run goes on at the next 2,000 test pictures, or epoch of a draw.
"""

import _repository  # noqa: F401, I001 — first: it sets the import path

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from pipeline.artifacts import (
    fingerprint,
    kept_parts,
    to_vectors,
    write_json,
    write_parts,
    write_table,
)
from pipeline.benchmarks.cache import class_names
from pipeline.benchmarks.draw import draw_few_shot
from pipeline.benchmarks.layouts import Dataset, read_benchmark
from pipeline.benchmarks.layouts.imagenet import IMAGENETS
from pipeline.benchmarks.params import Benchmark, Count, Seeds
from pipeline.benchmarks.protocols import Run
from pipeline.benchmarks.schemas import PICTURES, SAMPLES, test_schema, views_schema
from pipeline.benchmarks.sound import check_shots, remarks
from pipeline.benchmarks.views import encode_test, encode_train, opened
from pipeline.clip.activation import compare_activations
from pipeline.clip.backbone import Backbone, load_backbone
from pipeline.clip.params import BackboneParams
from pipeline.params import load_params
from pipeline.pictures import Pictures
from pipeline.prompts.base import check_prompts, in_words
from pipeline.stage import output, parser, progress, run, warn, warn_of_other_files

# As long as the usual context. The benchmark's own template may be longer: whoever makes prompts of
# it checks them, so that another one encodes no picture again.
FOUR_TOKENS = "a photo of a {}."

READS = {
    "benchmark": ("benchmarks.{name}", Benchmark),
    "draws": ("few_shot.draws", Seeds),
    "epochs": ("few_shot.epochs", Count),
    "backbone": ("backbone", BackboneParams),
}


def features_of_tests(
    backbone: Backbone, pictures: Pictures, test: pl.DataFrame, work: Path
) -> pa.Table:
    """Index and features of the test pictures."""
    features = encode_test(backbone, pictures, test["file"].to_list(), work, progress)
    columns = [test["index"].to_arrow(), to_vectors(features)]
    return pa.table(columns, schema=test_schema(backbone.dim))


def draws_of(
    b: Benchmark, seeds: list[int], train: pl.DataFrame
) -> Iterator[tuple[Run, pl.DataFrame]]:
    """Every few-shot draw, with the samples that are drawn."""
    for classes, numbers in b.shots:
        for shots in numbers:
            for seed in seeds:
                drawn = train[draw_few_shot(train["label"].to_list(), shots, seed)]
                if classes == "base":
                    drawn = drawn.filter(pl.col("half") == "base")
                yield Run(classes, shots, seed), drawn


def views_of(draw: Run, indices: np.ndarray, views: np.ndarray) -> pa.Table:
    """Rows of `views_schema`.

    Args:
        indices: (n,) of the drawn samples. views: (epochs, n, d) their features, a view per epoch.
    """
    epochs, count, dim = views.shape
    n = epochs * count
    schema = views_schema(dim)
    columns = [
        [draw.classes] * n,
        np.full(n, draw.shots, np.int32),
        np.full(n, draw.seed, np.int32),
        np.repeat(np.arange(epochs, dtype=np.int32), count),
        np.tile(indices, epochs),
        to_vectors(views.reshape(-1, dim)),
    ]
    return pa.table([c if isinstance(c, pa.Array) else pa.array(c) for c in columns], schema=schema)


def write_pictures(pictures: Pictures, samples: pl.DataFrame, path: Path) -> None:
    """The files of samples, a thousand in memory at once."""
    groups = (
        pa.table(
            [
                part["index"].to_arrow(),
                pa.array([pictures.read(f) for f in part["file"]], pa.binary()),
            ],
            schema=PICTURES,
        )
        for part in samples.sort("index").iter_slices(1000)
    )
    write_parts(groups, path, PICTURES)


def check(dataset: Dataset, samples: pl.DataFrame, name: str, b: Benchmark) -> None:
    """InputError for what cannot be used; a warning for what may be another than one thinks."""
    check_shots(name, b, samples)
    for remark in remarks(name, b, dataset):
        warn(remark)
    if dataset.split == "own":
        warn_of_other_files(dataset.pictures)


def check_activation(backbone: Backbone, dataset: Dataset, samples: pl.DataFrame) -> None:
    """A warning if the other activation than the config's names test pictures better."""
    test = samples.filter(pl.col("split") == "test")
    files = test["file"].to_list()
    words = compare_activations(
        backbone,
        lambda row: opened(dataset.pictures, files[row]),
        test["name"].to_list(),
        lambda name: in_words(name, FOUR_TOKENS),
    )
    if words:
        warn(f"the backbone: {words}")


def all_views(
    backbone: Backbone,
    pictures: Pictures,
    draws: list[tuple[Run, pl.DataFrame]],
    epochs: int,
    work: Path,
) -> pa.Table:
    """Rows of `views_schema` of all draws; finished epochs stay in `work`."""
    parts = [views_schema(backbone.dim).empty_table()]
    for draw, drawn in draws:
        files, place = drawn["file"].to_list(), work / f"{draw.classes}-{draw.shots}-{draw.seed}"
        views = encode_train(backbone, pictures, files, epochs, draw.seed, place, progress)
        parts.append(views_of(draw, drawn["index"].to_numpy(), views))
    return pa.concat_tables(parts)


def main():
    cli = parser(__doc__)
    cli.add_argument("--name", required=True, help="entry of `benchmarks:`")
    told = "folder for samples, test features, views and pictures"
    cli.add_argument("--out", type=output, required=True, help=told)
    args = cli.parse_args()
    p = load_params(args.params, READS, name=args.name)
    b = p.benchmark
    dataset = read_benchmark(b.layout, b.path, b.domains, b.split)
    samples, pictures = pl.from_arrow(dataset.samples), dataset.pictures
    train, test = (samples.filter(pl.col("split") == split) for split in ("train", "test"))
    check(dataset, samples, args.name, b)
    backbone = load_backbone(p.backbone.path)
    if b.layout not in IMAGENETS:  # the field lives with its names (docs/benchmarks.md)
        check_prompts(backbone, class_names(samples, "all"), FOUR_TOKENS, b.path)
    check_activation(backbone, dataset, samples)
    draws = list(draws_of(b, p.draws, train))
    made_of = fingerprint((p, args.name), b.path, p.backbone.path)
    with kept_parts(args.out, made_of) as work:
        seen = features_of_tests(backbone, pictures, test, work)
        views = all_views(backbone, pictures, draws, p.epochs, work)
        write_table(dataset.samples, args.out / "samples.parquet", SAMPLES)
        write_json({"split": dataset.split}, args.out / "about.json")
        write_table(seen, args.out / "test.parquet", seen.schema)
        write_table(views, args.out / "views.parquet", views.schema)
        in_use = pl.concat([test, *(drawn for _, drawn in draws)]).unique("index")
        write_pictures(pictures, in_use, args.out / "pictures.parquet")
    counts = {
        "classes": samples["label"].n_unique(),
        "train": len(train),
        "test": len(test),
        "views": len(views),
    }
    words = (
        f"{args.name}: {counts['classes']} classes, {len(train)} training and {len(test)} test "
        f"pictures; {len(views)} training views of {len(draws)} draws"
    )
    return words, counts, args.metrics


if __name__ == "__main__":
    run(main)
