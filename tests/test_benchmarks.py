"""The protocol: layouts, halves, draws, learning rates, scores."""

import io
import random
import zipfile

import numpy as np
import polars as pl
import pytest
from conftest import ROOT
from PIL import Image

from pipeline.benchmarks import views
from pipeline.benchmarks.draw import draw_few_shot, draw_train_and_val
from pipeline.benchmarks.params import Sgd
from pipeline.benchmarks.reader import Pictures, half_of, read_samples
from pipeline.benchmarks.scores import harmonic_mean
from pipeline.clip.backbone import load_backbone
from pipeline.errors import InputError
from pipeline.gram.tune import learning_rate
from pipeline.prompts.starts import Start, load_start, save_start


def silent(items, label, total=None):
    return items


def jpeg():
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "JPEG")
    return buffer.getvalue()


def folder(tmp_path, names):
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg())
    return tmp_path


NAMES = [
    f"{s}/{c}/{i}.jpg"
    for s in ("train", "test")
    for c in ("polar_bear", "ant", "cat")
    for i in range(2)
]


def test_folder_and_zip_read_the_same(tmp_path):
    top = folder(tmp_path / "d", NAMES)
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
        for name in reversed(NAMES):
            archive.write(top / name, name)
    table = read_samples(Pictures(top))
    assert table.equals(read_samples(Pictures(tmp_path / "d.zip")))
    rows = pl.from_arrow(table)
    assert rows.select("label", "name", "half").unique().sort("label").rows() == [
        (0, "ant", "base"),
        (1, "cat", "base"),
        (2, "polar bear", "new"),
    ]
    assert Pictures(tmp_path / "d.zip").read(NAMES[0]) == jpeg()


def test_domains_above_the_classes(tmp_path):
    top = folder(
        tmp_path,
        [n.replace("train/", "train/photo/").replace("test/", "test/sketch/") for n in NAMES],
    )
    assert set(read_samples(Pictures(top))["domain"].to_pylist()) == {"photo", "sketch"}


@pytest.mark.parametrize(
    "names, words",
    [
        (["cat/1.jpg"], "does not fit <train|test>"),
        (["train/cat/1.jpg", "train/dog/1.jpg"], "no pictures under test/"),
        ([*NAMES, "test/dog/1.jpg"], "class 'dog' has pictures under test/ but none under train/"),
        (["train/cat/1.jpg", "test/cat/1.jpg"], "only the class 'cat'"),
    ],
)
def test_other_layouts_are_explained(tmp_path, names, words):
    with pytest.raises(InputError, match=words):
        read_samples(Pictures(folder(tmp_path, names)))


def test_no_such_benchmark(tmp_path):
    with pytest.raises(InputError, match="neither a folder nor a complete zip"):
        Pictures(tmp_path / "gone.zip")


@pytest.mark.parametrize(
    "classes, base", [(37, 19), (47, 24), (10, 5), (101, 51), (397, 199), (1000, 500)]
)
def test_halves_are_the_protocols(classes, base):
    assert sum(half_of(c, classes) == "base" for c in range(classes)) == base


def test_draw_is_the_references():
    """random.seed, then random.sample label by label in order of first appearance."""
    labels = [2, 0, 2, 1, 0, 2, 1, 0, 2, 0, 1, 2]
    random.seed(5)
    expected = []
    for label in (2, 0, 1):
        expected += random.sample([i for i, x in enumerate(labels) if x == label], 3)
    assert draw_few_shot(labels, 3, 5) == expected
    # all of a label that has fewer
    assert len([i for i in draw_few_shot(labels, 4, 5) if labels[i] == 1]) == 3


def test_val_is_drawn_from_the_same_stream():
    train, val = [0, 1] * 8, [1] * 6 + [0] * 6
    random.seed(3)
    expected = [
        random.sample([i for i, x in enumerate(labels) if x == label], k)
        for labels, k, order in ((train, 5, (0, 1)), (val, 4, (1, 0)))
        for label in order
    ]
    drawn = draw_train_and_val(train, val, 5, 3)
    assert drawn == (expected[0] + expected[1], expected[2] + expected[3])
    assert drawn[0] == draw_few_shot(train, 5, 3)
    assert len(draw_train_and_val(train, val, 2, 3)[1]) == 4  # of each class no more than the shots


def test_learning_rate_per_epoch():
    """The ten published values."""
    settings = Sgd(lr=0.002, warmup_lr=1e-5, momentum=0.9, weight_decay=5e-4, batch=32)
    expected = [
        1e-5,
        0.002,
        0.00195106,
        0.00180902,
        0.00158779,
        0.00130902,
        0.001,
        0.000690983,
        0.000412215,
        0.000190983,
    ]
    assert [learning_rate(e, 10, settings) for e in range(10)] == pytest.approx(expected, rel=1e-5)


def test_harmonic_mean_reproduces_the_papers_rows():
    """Table 1(a) of the paper: base, new → H, rounded there to two places."""
    for base, new, h in [
        (69.34, 74.22, 71.70),
        (80.47, 71.69, 75.83),
        (77.58, 73.11, 75.28),
        (78.74, 74.93, 76.79),
        (72.53, 72.34, 72.43),
        (74.04, 74.21, 74.12),
        (80.34, 75.92, 78.07),
    ]:
        assert harmonic_mean(base, new) == pytest.approx(h, abs=0.011)
    assert harmonic_mean(0, 0) == 0


def test_starts_read_back_and_complain(tmp_path):
    import torch

    save_start(Start("coop", 3, {"text": torch.ones(2, 3)}, {}, "rms"), tmp_path)
    start = load_start(tmp_path)
    assert (
        start.prompt == "coop"
        and start.depth == 3
        and start.input_scale == "rms"
        and start.phi == {}
        and start.theta["text"].shape == (2, 3)
    )
    whole = (tmp_path / "prompt.safetensors").read_bytes()
    (tmp_path / "prompt.safetensors").write_bytes(whole[:-4])
    with pytest.raises(InputError, match="prompt.safetensors: not a complete safetensors file"):
        load_start(tmp_path)
    (tmp_path / "prompt.safetensors").unlink()
    with pytest.raises(InputError, match="prompt.safetensors: missing"):
        load_start(tmp_path)


def test_features_of_a_benchmark_go_on_at_the_next_part(tmp_path, monkeypatch):
    """Encoding ImageNet takes hours: what was finished is not encoded again."""
    backbone = load_backbone(ROOT / "demo" / "backbone")
    rng = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    files = [f"{n}.png" for n in range(8)]
    for file in files:
        pixels = rng.integers(0, 255, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / file)
    pictures, encoded = Pictures(tmp_path / "pictures"), []
    plain = views.image_features

    def stopped(after):
        def encode(backbone, seen):
            seen = list(seen)
            if len(encoded) == after:
                raise KeyboardInterrupt
            encoded.append(len(seen))
            return plain(backbone, seen)

        return encode

    def both(work):
        tests = views.encode_test(backbone, pictures, files, work, silent)
        return tests, views.encode_train(backbone, pictures, files[:4], 3, 1, work / "d", silent)

    monkeypatch.setattr(views, "PART", 3)
    tests, trained = both(tmp_path / "alone")
    assert tests.shape == (8, backbone.dim) and trained.shape == (3, 4, backbone.dim)
    for after in (0, 2, 4):
        monkeypatch.setattr(views, "image_features", stopped(after))
        with pytest.raises(KeyboardInterrupt):
            both(tmp_path / "parts")
    monkeypatch.setattr(views, "image_features", stopped(None))
    again = both(tmp_path / "parts")
    assert encoded == [3, 3, 2, 4, 4, 4]
    assert np.array_equal(again[0], tests) and np.array_equal(again[1], trained)
