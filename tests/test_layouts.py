"""The field's fifteen datasets in small: what is read from each layout, which shots are drawn,
and what is said of bad input.
"""

import functools
import hashlib
import io
import json
import math
import os
import random
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import polars as pl
import pytest
from conftest import ROOT
from PIL import Image
from scipy.io import savemat

from pipeline.benchmarks.__main__ import main
from pipeline.benchmarks.draw import draw_few_shot
from pipeline.benchmarks.fetch import ARCHIVES, Archive, fetch
from pipeline.benchmarks.layouts import read_benchmark
from pipeline.benchmarks.layouts.known import KNOWN
from pipeline.benchmarks.params import LAYOUTS
from pipeline.errors import InputError


@functools.cache
def jpeg(grey=0):
    buffer = io.BytesIO()
    Image.new("L", (8, 8), grey).save(buffer, "JPEG")
    return buffer.getvalue()


def put(top, files):
    for number, name in enumerate(files):
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number % 200))


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text if isinstance(text, str) else "".join(f"{line}\n" for line in text))


def rows(layout, top, **options):
    dataset = read_benchmark(layout, top, **options)
    return dataset, pl.from_arrow(dataset.samples)


def classes_of(table):
    return table.select("label", "name", "half").unique().sort("label").rows()


# --- split files ---

WITH_SPLIT = [name for name, known in KNOWN.items() if known.split_file]


def split_of(classes=5, train=7, val=5, test=3, seed=3):
    """A split as the reference leaves it: the rows of a list in no order, paths below the
    pictures' folder.
    """
    order = random.Random(seed)
    lists = {
        part: [
            [f"k{label}/{part}_{i}.jpg", label, f"kind_{label}"]
            for label in range(classes)
            for i in range(count)
        ]
        for part, count in (("train", train), ("val", val), ("test", test))
    }
    for items in lists.values():
        order.shuffle(items)
    return lists


def with_split(tmp_path, layout, split):
    known = KNOWN[layout]
    top = tmp_path / known.folder
    put(top, [str(Path(known.pictures) / file) for items in split.values() for file, *_ in items])
    write(top / known.split_file, json.dumps(split))
    return top


def by_the_protocol(split, shots, seed):
    """The shots of train and val, and the labels of the base half, in the protocol's own terms
    and with Python's global generator.
    """
    random.seed(seed)
    drawn = []
    for items, k in ((split["train"], shots), (split["val"], min(shots, 4))):
        groups = {}
        for item in items:
            groups.setdefault(item[1], []).append(item)
        drawn.append(
            [
                item
                for group in groups.values()
                for item in (random.sample(group, k) if len(group) >= k else group)
            ]
        )
    labels = sorted({item[1] for item in split["train"]})
    return *drawn, labels[: math.ceil(len(labels) / 2)]


@pytest.mark.parametrize("layout", WITH_SPLIT)
def test_split_files_are_read_in_their_order(tmp_path, layout):
    split = split_of()
    top = with_split(tmp_path, layout, split)
    dataset, table = rows(layout, top)
    assert dataset.split == "reference"
    expected = [(part, *item) for part in ("train", "val", "test") for item in split[part]]
    prefix = KNOWN[layout].pictures and KNOWN[layout].pictures + "/"
    assert table.select("split", "file", "label", "name").rows() == [
        (part, prefix + file, label, name) for part, file, label, name in expected
    ]
    assert table["index"].to_list() == list(range(len(expected))) and set(table["domain"]) == {""}
    assert dataset.pictures.read(table["file"][5]) == jpeg(5)
    for seed in (1, 2, 3):
        shots, _, base = by_the_protocol(split, 4, seed)
        train = table.filter(pl.col("split") == "train")
        drawn = train[draw_few_shot(train["label"].to_list(), 4, seed)]
        assert drawn.select("file", "label", "name").rows() == [
            (prefix + file, label, name) for file, label, name in shots
        ]
        assert sorted(set(drawn.filter(pl.col("half") == "base")["label"])) == base


def test_the_command_draws_without_pictures(tmp_path, capsys):
    """Train first, then val from the same random stream; classes with fewer pictures take no
    random numbers.
    """
    split = split_of(train=9, val=6)
    split["train"] = [
        item for item in split["train"] if item[1] != 2 or item[0] == "k2/train_1.jpg"
    ]
    path = tmp_path / "split_zhou_X.json"
    write(path, json.dumps(split))
    for shots, seed in ((2, 1), (4, 3), (16, 2)):
        assert main(["draw", str(path), "--shots", str(shots), "--seed", str(seed)]) == 0
        found = json.loads(capsys.readouterr().out.splitlines()[-1])
        train, val, _ = by_the_protocol(split, shots, seed)
        assert [split["train"][i] for i in found["train"]] == train and [
            split["val"][i] for i in found["val"]
        ] == val
        assert len(val) == 5 * min(shots, 4)
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.benchmarks", "draw", path, "--shots", "16", "--seed", "2"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout.splitlines()[-1]) == found and done.stderr == ""


@pytest.mark.parametrize(
    "mend, words",
    [
        (
            lambda s: s["train"][3].__setitem__(0, "../x.jpg"),
            "row 3 of 'train': '../x.jpg' is no plain path",
        ),
        (lambda s: s["train"][3].__setitem__(0, "k1/../../../x.jpg"), "is no plain path"),
        (
            lambda s: s["val"][0].__setitem__(0, "/etc/x.jpg"),
            "row 0 of 'val': '/etc/x.jpg' is no plain path",
        ),
        (
            lambda s: s["test"][1].__setitem__(1, "1"),
            "row 1 of 'test' is .* not .path, label, class name",
        ),
        (lambda s: s["test"][1].__setitem__(1, True), "row 1 of 'test' is"),
        (lambda s: s["test"][1].__setitem__(2, " "), "row 1 of 'test' is"),
        (lambda s: s["test"].append(["a.jpg", 1]), "row 15 of 'test' is"),
        (lambda s: s.pop("val"), "has no list 'val'"),
        (lambda s: s["train"].clear(), "'train' is empty"),
        (lambda s: s["test"].clear(), "has no test pictures"),
        (
            lambda s: [s[p].__setitem__(slice(None), [i for i in s[p] if i[1] != 2]) for p in s],
            "no picture has label 2, but some have label 4",
        ),
        (
            lambda s: s["test"].__setitem__(slice(None), [i for i in s["test"] if i[1] != 2]),
            r"class 'kind_2' \(label 2\) has no picture in test",
        ),
        (
            lambda s: s["train"].__setitem__(slice(None), [i for i in s["train"] if i[1] != 2]),
            r"class 'kind_2' \(label 2\) has no picture in train",
        ),
        (
            lambda s: [s[p].__setitem__(slice(None), [i for i in s[p] if i[1] == 0]) for p in s],
            "only the class 'kind_0', so the new half is empty",
        ),
        (
            lambda s: [i.__setitem__(2, "kind 1") for p in s for i in s[p] if i[1] == 4],
            "labels 1 and 4 are both called 'kind 1'",
        ),
        (lambda s: s["val"][0].__setitem__(2, "other"), "give it one name"),
        (lambda s: s["test"].append(s["train"][0]), "is in train and in test"),
    ],
)
def test_a_bad_split_file_is_explained(tmp_path, mend, words):
    split = split_of()
    top = with_split(tmp_path, "dtd", split)
    mend(split)
    path = top / KNOWN["dtd"].split_file
    path.write_text(json.dumps(split))
    with pytest.raises(InputError, match=words) as error:
        read_benchmark("dtd", top)
    assert str(error.value).startswith(str(path))


def test_missing_pictures_are_counted(tmp_path):
    split = split_of()
    top = with_split(tmp_path, "ucf101", split)
    for file, *_ in (split["train"][4], split["test"][0], split["test"][1]):
        (top / "UCF-101-midframes" / file).unlink()
    with pytest.raises(
        InputError,
        match=f"3 of its 75 pictures are not there, the first is .*{split['train'][4][0]}",
    ):
        read_benchmark("ucf101", top)


def test_a_damaged_split_file_is_named(tmp_path):
    top = with_split(tmp_path, "food101", split_of())
    path = top / "split_zhou_Food101.json"
    for content in (path.read_bytes()[:-40], b"\xff\xfe{", b"[]"):
        path.write_bytes(content)
        with pytest.raises(
            InputError,
            match="split_zhou_Food101.json: (not valid JSON|is no UTF-8|holds no JSON object)",
        ):
            read_benchmark("food101", top)


# --- the publishers' own lists ---


def caltech101(top):
    put(
        top / "101_ObjectCategories",
        [
            f"{c}/image_{i:04d}.jpg"
            for c in (
                "BACKGROUND_Google",
                "Faces",
                "Faces_easy",
                "Leopards",
                "accordion",
                "airplanes",
                "sea_horse",
            )
            for i in range(1, 11)
        ],
    )
    return ["face", "leopard", "accordion", "airplane", "sea_horse"], (25, 10, 15)


def eurosat(top):
    put(
        top / "2750",
        [
            f"{c}/{c}_{i}.jpg"
            for c in ("River", "AnnualCrop", "SeaLake", "Highway")
            for i in range(10)
        ],
    )
    write(top / "2750" / "River" / ".hidden.jpg", "")
    write(top / "2750" / "River" / "readme.txt", "")
    return ["Annual Crop Land", "Highway or Road", "River", "Sea or Lake"], (20, 8, 12)


def oxford_pets(top):
    names = ["Abyssinian", "american_bulldog", "Birman"]
    for part, numbers in (("trainval", range(10)), ("test", range(10, 14))):
        write(
            top / "annotations" / f"{part}.txt",
            [f"{name}_{i} {label} 1 1" for label, name in enumerate(names, 1) for i in numbers],
        )
    put(top / "images", [f"{name}_{i}.jpg" for name in names for i in range(14)])
    return ["abyssinian", "american_bulldog", "birman"], (24, 6, 12)


def stanford_cars(top):
    (top / "devkit").mkdir(parents=True)
    savemat(
        top / "devkit" / "cars_meta.mat",
        {
            "class_names": np.array(
                ["AM General Hummer SUV 2000", "Acura RL Sedan 2012", "Audi S4 Sedan 2007"], object
            )
        },
    )
    for path, folder in (
        (top / "devkit" / "cars_train_annos.mat", "cars_train"),
        (top / "cars_test_annos_withlabels.mat", "cars_test"),
    ):
        rows = [(f"{i:05d}.jpg", i % 3 + 1) for i in range(30)]
        savemat(path, {"annotations": np.array(rows, [("fname", object), ("class", object)])})
        put(top / folder, [name for name, _ in rows])
    return ["2000 AM General Hummer SUV", "2012 Acura RL Sedan", "2007 Audi S4 Sedan"], (24, 6, 30)


def flowers102(top):
    top.mkdir()
    savemat(top / "imagelabels.mat", {"labels": np.tile(np.array([3, 1, 2], np.uint8), 10)})
    savemat(
        top / "setid.mat",
        {"trnid": np.arange(1, 10), "valid": np.arange(10, 16), "tstid": np.arange(16, 31)},
    )
    write(
        top / "cat_to_name.json", json.dumps({"2": "tiger lily", "1": "pink primrose", "3": "rose"})
    )
    put(top / "jpg", [f"image_{i:05d}.jpg" for i in range(1, 31)])
    return ["pink primrose", "tiger lily", "rose"], (9, 6, 15)


def food101(top):
    for part, numbers in (("train", range(10)), ("test", range(10, 14))):
        write(
            top / "meta" / f"{part}.txt",
            [f"{c}/{i}" for c in ("waffles", "apple_pie") for i in numbers],
        )
    put(top / "images", [f"{c}/{i}.jpg" for c in ("waffles", "apple_pie") for i in range(14)])
    return ["apple_pie", "waffles"], (16, 4, 8)


def fgvc_aircraft(top):
    names = ["707-320", "F/A-18", "A340-200"]
    write(top / "variants.txt", names)
    for start, part in enumerate(("train", "val", "test")):
        write(
            top / f"images_variant_{part}.txt",
            [f"{1000 * start + i:07d} {names[i % 3]}" for i in range(6)],
        )
        put(top / "images", [f"{1000 * start + i:07d}.jpg" for i in range(6)])
    return names, (6, 6, 6)


def sun397(top):
    folders = ["/a/abbey", "/b/badminton_court/indoor", "/b/badminton_court/outdoor"]
    write(top / "ClassName.txt", folders)
    for part, numbers in (("Training", range(10)), ("Testing", range(10, 15))):
        write(top / f"{part}_01.txt", [f"{f}/sun_{i}.jpg" for f in folders for i in numbers])
    put(top / "SUN397", [f"{f[1:]}/sun_{i}.jpg" for f in folders for i in range(15)])
    return ["abbey", "indoor badminton_court", "outdoor badminton_court"], (24, 6, 15)


def dtd(top):
    for start, part in enumerate(("train", "val", "test")):
        files = [
            f"{c}/{c}_{10 * start + i:04d}.jpg"
            for c in ("polka-dotted", "banded", "zigzagged")
            for i in range(4)
        ]
        write(top / "labels" / f"{part}1.txt", files)
        put(top / "images", files)
    return ["banded", "polka-dotted", "zigzagged"], (12, 12, 12)


def ucf101(top):
    actions = {"ApplyEyeMakeup": "Apply_Eye_Makeup", "Archery": "Archery", "YoYo": "Yo_Yo"}
    for part, numbers in (("train", range(10)), ("test", range(10, 13))):
        write(
            top / "ucfTrainTestlist" / f"{part}list01.txt",
            [
                f"{a}/v_{a}_g{i:02d}_c01.avi" + (f" {label}" if part == "train" else "")
                for label, a in enumerate(actions, 1)
                for i in numbers
            ],
        )
    put(
        top / "UCF-101-midframes",
        [f"{name}/v_{a}_g{i:02d}_c01.jpg" for a, name in actions.items() for i in range(13)],
    )
    return list(actions.values()), (24, 6, 9)


OWN_LISTS = [
    caltech101,
    eurosat,
    oxford_pets,
    stanford_cars,
    flowers102,
    food101,
    fgvc_aircraft,
    sun397,
    dtd,
    ucf101,
]


@pytest.mark.parametrize("make", OWN_LISTS)
def test_without_a_split_file_the_publishers_lists_count(tmp_path, make):
    layout = make.__name__
    top = tmp_path / KNOWN[layout].folder
    names, counts = make(top)
    dataset, table = rows(layout, top)
    assert dataset.split == ("reference" if layout == "fgvc_aircraft" else "official")
    assert [(label, name) for label, name, _ in classes_of(table)] == list(enumerate(names))
    assert [half for *_, half in classes_of(table)] == ["base"] * math.ceil(len(names) / 2) + [
        "new"
    ] * (len(names) // 2)
    assert tuple((table["split"] == part).sum() for part in ("train", "val", "test")) == counts
    assert (
        table["split"].to_list()
        == ["train"] * counts[0] + ["val"] * counts[1] + ["test"] * counts[2]
    )
    assert table["file"].n_unique() == len(table) and all(
        (top / file).is_file() for file in table["file"]
    )
    for part, count in zip(("train", "val", "test"), counts):  # of each class alike
        assert set(table.filter(pl.col("split") == part).group_by("label").len()["len"]) == {
            count // len(names)
        }
    assert read_benchmark(layout, top).samples.equals(dataset.samples)
    first = table.filter(pl.col("name") == names[0])["file"][0]
    assert names[0].lower().split("_")[0].split(" ")[0][:3] in first.lower() or layout in (
        "stanford_cars",
        "flowers102",
        "fgvc_aircraft",
    )


def test_labels_of_numbered_pictures_are_the_lists(tmp_path):
    """Where the path does not tell the class."""
    for make, label_of in (
        (stanford_cars, lambda f: int(f[-9:-4]) % 3),
        (flowers102, lambda f: [2, 0, 1][(int(f[-9:-4]) - 1) % 3]),
        (fgvc_aircraft, lambda f: int(f[-11:-4]) % 1000 % 3),
    ):
        top = tmp_path / make.__name__
        make(top)
        table = rows(make.__name__, top)[1]
        assert table["label"].to_list() == [label_of(f) for f in table["file"]]


def test_food_lists_as_json(tmp_path):
    food101(tmp_path / "a")
    expected = read_benchmark("food101", tmp_path / "a").samples
    for part in ("train", "test"):
        path = tmp_path / "a" / "meta" / f"{part}.txt"
        lines = path.read_text().split()
        path.unlink()
        write(
            path.with_suffix(".json"),
            json.dumps(
                {
                    c: [line for line in lines if line.startswith(c)]
                    for c in ("waffles", "apple_pie")
                }
            ),
        )
    assert read_benchmark("food101", tmp_path / "a").samples.equals(expected)


@pytest.mark.parametrize(
    "make, change, words",
    [
        (
            oxford_pets,
            lambda t: (t / "annotations/trainval.txt").unlink(),
            "trainval.txt: there is no such file; .* split file",
        ),
        (
            oxford_pets,
            lambda t: write(t / "annotations/test.txt", ["Birman_1 3 1 1", "Birman 3"]),
            "test.txt, line 2: 'Birman 3' is not what",
        ),
        (
            oxford_pets,
            lambda t: (t / "images/Birman_3.jpg").unlink(),
            "1 of its 42 pictures are not there",
        ),
        (
            stanford_cars,
            lambda t: (t / "devkit/cars_meta.mat").write_bytes(b"x" * 300),
            "cars_meta.mat: not a readable MATLAB file",
        ),
        (
            stanford_cars,
            lambda t: savemat(
                t / "cars_test_annos_withlabels.mat",
                {"annotations": np.array([("1.jpg",)], [("fname", object)])},
            ),
            "have no 'fname' or no 'class'",
        ),
        (
            stanford_cars,
            lambda t: savemat(
                t / "devkit/cars_meta.mat", {"class_names": np.array(["A 1", "B 2"], object)}
            ),
            "row 3 has class 3, but .* names 2",
        ),
        (
            stanford_cars,
            lambda t: savemat(t / "devkit/cars_meta.mat", {"x": 1}),
            "no variable 'class_names'",
        ),
        (
            flowers102,
            lambda t: write(t / "cat_to_name.json", '{"1": "a", "2": "b"}'),
            "has no name for class 3",
        ),
        (
            flowers102,
            lambda t: savemat(t / "setid.mat", {"trnid": [1], "valid": [2], "tstid": [99]}),
            "has picture 99, but imagelabels.mat has 30",
        ),
        (
            fgvc_aircraft,
            lambda t: write(t / "variants.txt", ["707-320", "F/A-18"]),
            "images_variant_train.txt, line 3: 'A340-200' is not in variants.txt",
        ),
        (
            sun397,
            lambda t: write(t / "ClassName.txt", ["/a/abbey"]),
            "Training_01.txt, line 11: class '/b/badminton_court/indoor' is not in ClassName.txt",
        ),
        (
            sun397,
            lambda t: write(t / "Testing_01.txt", ["/a/../../x.jpg"]),
            "is not in ClassName.txt",
        ),
        (
            dtd,
            lambda t: write(t / "labels/val1.txt", ["../x.jpg"]),
            r"val1.txt, line 1: '../x.jpg' is no plain path",
        ),
        (
            ucf101,
            lambda t: write(t / "ucfTrainTestlist/testlist01.txt", ["Juggling/v_1.avi"]),
            "testlist01.txt, line 1: no line of trainlist01.txt gives 'Juggling' a label",
        ),
        (
            caltech101,
            lambda t: [f.unlink() for f in (t / "101_ObjectCategories/accordion").iterdir()],
            "accordion: holds no pictures",
        ),
        (
            caltech101,
            lambda t: [
                f.unlink() for f in sorted((t / "101_ObjectCategories/accordion").iterdir())[1:]
            ],
            "class 'accordion' .* has no picture in train",
        ),
        (eurosat, lambda t: (t / "2750").rename(t / "2751"), "2750: there is no such folder"),
    ],
)
def test_bad_lists_are_explained(tmp_path, make, change, words):
    top = tmp_path / "d"
    make(top)
    change(top)
    with pytest.raises(InputError, match=words):
        read_benchmark(make.__name__, top)


# --- ImageNet and its variants ---

SYNSETS = [f"n{i:08d}" for i in (1440764, 1443537, 3773504, 4008634, 4355933)]
NAMES = ["tench", "goldfish", "missile", "missile", "sunglasses"]


def imagenets(root):
    write(root / "imagenet" / "classnames.txt", [f"{s} {n}" for s, n in zip(SYNSETS, NAMES)])
    put(
        root / "imagenet" / "images",
        [
            f"{part}/{s}/{s}_{i}.JPEG"
            for part, count in (("train", 12), ("val", 3))
            for s in reversed(SYNSETS)
            for i in range(count)
        ],
    )
    put(
        root / "imagenetv2" / KNOWN["imagenetv2"].pictures,
        [f"{label}/{i}.jpeg" for label in range(5) for i in range(2)],
    )
    put(
        root / "imagenet-sketch" / "images",
        [f"{s}/sketch_{i}.JPEG" for s in SYNSETS for i in range(2)],
    )
    put(
        root / "imagenet-adversarial" / "imagenet-a",
        [f"{s}/{i}.jpg" for s in SYNSETS[1:4] for i in range(2)],
    )
    put(
        root / "imagenet-rendition" / "imagenet-r",
        [f"{s}/{i}.jpg" for s in SYNSETS[::4] for i in range(2)],
    )
    write(root / "imagenet-rendition" / "imagenet-r" / "README.txt", "")
    return root


@pytest.mark.parametrize(
    "layout, names, counts",
    [
        ("imagenet", NAMES, (60, 0, 15)),
        ("imagenetv2", NAMES, (0, 0, 10)),
        ("imagenet_sketch", NAMES, (0, 0, 10)),
        ("imagenet_a", NAMES[1:4], (0, 0, 6)),
        ("imagenet_r", NAMES[::4], (0, 0, 4)),
    ],
)
def test_imagenet_and_its_variants(tmp_path, layout, names, counts):
    top = imagenets(tmp_path) / KNOWN[layout].folder
    dataset, table = rows(layout, top)
    assert dataset.split == "reference"
    assert [name for _, name, _ in classes_of(table)] == names and [
        half for *_, half in classes_of(table)
    ].count("base") == math.ceil(len(names) / 2)
    assert tuple((table["split"] == part).sum() for part in ("train", "val", "test")) == counts
    for _, part in table.group_by("split"):
        assert part["label"].is_sorted()
        assert all(group["file"].is_sorted() for _, group in part.group_by("label"))
    assert all((top / file).is_file() for file in table["file"])


def test_folders_of_v2_are_numbers(tmp_path):
    """10 comes after 9, not after 1."""
    write(tmp_path / "classnames.txt", [f"n{i:08d} kind {i}" for i in range(12)])
    put(tmp_path / KNOWN["imagenetv2"].pictures, [f"{label}/x.jpeg" for label in range(12)])
    table = rows("imagenetv2", tmp_path)[1]
    assert [(Path(f).parent.name, n) for f, n in table.select("file", "name").rows()] == [
        (str(i), f"kind {i}") for i in range(12)
    ]


def test_a_million_files_are_not_asked_one_by_one(tmp_path, monkeypatch):
    top = imagenets(tmp_path) / "imagenet"
    calls, ask = [], os.stat
    monkeypatch.setattr(os, "stat", lambda *a, **k: calls.append(a) or ask(*a, **k))
    assert len(read_benchmark("imagenet", top).samples) == 75
    assert len(calls) < 15


@pytest.mark.parametrize(
    "layout, change, words",
    [
        (
            "imagenet",
            lambda r: write(r / "imagenet/classnames.txt", [f"{s} x" for s in reversed(SYNSETS)]),
            "classnames.txt, line 2: n04008634 stands after n04355933; .* sorted order",
        ),
        (
            "imagenet",
            lambda r: write(r / "imagenet/classnames.txt", [f"{s} x" for s in SYNSETS[:1] * 2]),
            "line 2: n01440764 stands after n01440764",
        ),
        (
            "imagenet",
            lambda r: write(r / "imagenet/classnames.txt", SYNSETS),
            "line 1: 'n01440764' is not '<synset> <name>'",
        ),
        (
            "imagenet",
            lambda r: write(r / "imagenet/classnames.txt", [f"{s} {s}" for s in SYNSETS[:4]]),
            "train: has a folder that .* does not name, n04355933",
        ),
        (
            "imagenet",
            lambda r: (r / "imagenet/images/val" / SYNSETS[0]).rename(r / "x"),
            "val: lacks a folder that .* names, n01440764",
        ),
        (
            "imagenet",
            lambda r: (r / "imagenet/classnames.txt").unlink(),
            "there is no such file, nor",
        ),
        (
            "imagenet_sketch",
            lambda r: (r / "imagenet/classnames.txt").unlink(),
            "imagenet-sketch/classnames.txt: there is no such file, nor .*imagenet/classnames.txt",
        ),
        (
            "imagenetv2",
            lambda r: put(r / "imagenetv2" / KNOWN["imagenetv2"].pictures, ["5/1.jpeg"]),
            "has 6 folders, but .*classnames.txt has 5 lines",
        ),
        (
            "imagenetv2",
            lambda r: (r / "imagenetv2" / KNOWN["imagenetv2"].pictures / "0").rename(
                r / "imagenetv2" / KNOWN["imagenetv2"].pictures / "5"
            ),
            "has a folder that .* does not name, 5",
        ),
        (
            "imagenet_a",
            lambda r: put(r / "imagenet-adversarial/imagenet-a", ["n09999999/1.jpg"]),
            "does not name the folder n09999999",
        ),
        (
            "imagenet_r",
            lambda r: [
                f.unlink() for f in (r / "imagenet-rendition/imagenet-r" / SYNSETS[0]).iterdir()
            ],
            "holds no pictures",
        ),
    ],
)
def test_bad_imagenets_are_explained(tmp_path, layout, change, words):
    change(imagenets(tmp_path))
    with pytest.raises(InputError, match=words):
        read_benchmark(layout, tmp_path / KNOWN[layout].folder)


def test_own_class_names_come_first(tmp_path):
    top = imagenets(tmp_path) / "imagenet-sketch"
    write(top / "classnames.txt", [f"{s} drawn {n}" for s, n in zip(SYNSETS, NAMES)])
    assert rows("imagenet_sketch", top)[1]["name"][0] == "drawn tench"


# --- one's own folders ---

OWN = [
    f"{part}{domain}/{c}/{i}.jpg"
    for part in ("train", "test/photo", "test/sketch")
    for domain in ("",)
    for c in ("polar_bear", "ant", "cat")
    for i in range(2)
]


def test_domains_choose_among_the_test_pictures(tmp_path):
    put(tmp_path, OWN)
    table = rows("folders", tmp_path, domains=["sketch"])[1]
    assert read_benchmark("folders", tmp_path).split == "own"
    assert table.group_by("split", "domain").len().sort("split").rows() == [
        ("test", "sketch", 6),
        ("train", "", 6),
    ]
    assert classes_of(table) == [(0, "ant", "base"), (1, "cat", "base"), (2, "polar bear", "new")]
    assert set(rows("folders", tmp_path)[1].filter(pl.col("split") == "test")["domain"]) == {
        "photo",
        "sketch",
    }
    with pytest.raises(InputError, match="test/ has no domain 'clay', only photo, sketch"):
        read_benchmark("folders", tmp_path, ["clay"])
    (tmp_path / "test/sketch/cat/0.jpg").unlink()
    (tmp_path / "test/sketch/cat/1.jpg").unlink()
    with pytest.raises(
        InputError, match="class 'cat' has pictures under train/ but none under test/ in sketch"
    ):
        read_benchmark("folders", tmp_path, ["sketch"])


def test_folders_without_a_train_part(tmp_path):
    put(tmp_path, [name for name in OWN if name.startswith("test/")])
    table = rows("folders", tmp_path, domains=["photo"])[1]
    assert (
        len(table) == 6
        and table["index"].to_list() == list(range(6))
        and [half for *_, half in classes_of(table)] == ["base", "base", "new"]
    )


def test_folders_may_be_a_zip(tmp_path):
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
        for name in OWN:
            archive.writestr(name, jpeg())
    dataset, table = rows("folders", tmp_path / "d.zip")
    assert len(table) == len(OWN) and dataset.pictures.read(table["file"][0]) == jpeg()


@pytest.mark.parametrize(
    "layout, options, words",
    [
        ("folder", {}, "layout 'folder' is not known, only folders, imagenet, caltech101"),
        ("dtd", {}, "there is no such folder; .*robots.ox.ac.uk"),
        ("dtd", {"domains": ["a"]}, "'domains' is for the layout 'folders'"),
    ],
)
def test_what_cannot_be_read_at_all(tmp_path, layout, options, words):
    with pytest.raises(InputError, match=words):
        read_benchmark(layout, tmp_path / "gone", **options)


def test_the_table_of_datasets_agrees_with_itself():
    assert (
        LAYOUTS == ("folders", *KNOWN, "domains")
        and len(KNOWN) == 15
        and set(ARCHIVES) < set(KNOWN)
    )
    for known in KNOWN.values():
        assert known.halves is None or sum(known.halves) == known.counts[2]
    assert all(
        (a.checksum.startswith("md5:") and len(a.checksum) == 36)
        or (a.checksum.startswith("sha256:") and len(a.checksum) == 71)
        for archives in ARCHIVES.values()
        for a in archives
    )


# --- the command line ---


def test_status_compares_with_the_fields_counts(tmp_path, monkeypatch, capsys):
    with_split(tmp_path, "dtd", split_of())
    dtd_known = replace(KNOWN["dtd"], classes=5, counts=(35, 25, 15), halves=(9, 6))
    monkeypatch.setitem(KNOWN, "dtd", dtd_known)
    eurosat(tmp_path / "eurosat")
    monkeypatch.setitem(
        KNOWN, "eurosat", replace(KNOWN["eurosat"], classes=4, counts=(10, 10, 20), halves=None)
    )
    oxford_pets(tmp_path / "oxford_pets")
    with_split(
        tmp_path,
        "ucf101",
        {part: items[1:] if part == "val" else items for part, items in split_of().items()},
    )
    (tmp_path / "ucf101" / "split_zhou_UCF101.json").write_text("{")

    def lines():
        assert main(["status", "--root", str(tmp_path)]) == 0
        return {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}

    found = lines()
    assert list(found) == list(KNOWN)
    assert (
        "complete    5 classes, 35/25/15 pictures (test 9 base, 6 new), reference split"
        in found["dtd"]
        and "fetch" not in found["dtd"]
    )
    assert (
        "complete    4 classes, 20/8/12 pictures" in found["eurosat"]
        and "official split (split_zhou_EuroSAT.json" in found["eurosat"]
    )
    assert (
        "incomplete  3 classes, 24/6/12 pictures" in found["oxford_pets"]
        and "the field has 37 classes, 2944/736/3669" in found["oxford_pets"]
        and "fetch oxford_pets" in found["oxford_pets"]
    )
    assert (
        "incomplete  " in found["ucf101"]
        and "not valid JSON" in found["ucf101"]
        and "fetch" not in found["ucf101"]
        and "crcv.ucf.edu" in found["ucf101"]
    )
    assert "missing     no " in found["imagenet"]
    monkeypatch.setitem(KNOWN, "dtd", replace(dtd_known, halves=(8, 7)))
    assert "present     5 classes" in lines()["dtd"]


def test_the_command_says_what_is_wrong(tmp_path, capsys):
    assert main(["draw", str(tmp_path / "gone.json")]) == 1
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'gone.json'}: there is no such")
    assert main(["fetch", "imagenet", "--root", str(tmp_path)]) == 1
    assert "fetch it yourself" in capsys.readouterr().err
    for wrong in (
        ["draw", "x", "--shots", "0"],
        ["fetch", "cifar"],
        ["fetch", "dtd", "--mirror", "file:///tmp"],
    ):
        with pytest.raises(SystemExit):
            main(wrong)


# --- fetching ---


def serving(handler):
    quiet = type("Quiet", (handler,), {"log_message": lambda *_: None})
    server = ThreadingHTTPServer(("127.0.0.1", 0), quiet)
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    return server, f"http://127.0.0.1:{server.server_address[1]}"


@pytest.fixture
def site(tmp_path):
    (tmp_path / "site").mkdir()
    server, address = serving(
        type(
            "Handler",
            (SimpleHTTPRequestHandler,),
            {
                "__init__": functools.partialmethod(
                    SimpleHTTPRequestHandler.__init__, directory=str(tmp_path / "site")
                )
            },
        )
    )
    yield tmp_path / "site", address
    server.shutdown()
    server.server_close()


def tarred(files, links=()):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
        for name, target in links:
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            tar.addfile(entry)
    return buffer.getvalue()


def zipped(files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def md5(content):
    return "md5:" + hashlib.md5(content, usedforsecurity=False).hexdigest()


def dtd_files(tmp_path):
    dtd(tmp_path / "made")
    return {
        f"dtd/{p.relative_to(tmp_path / 'made').as_posix()}": p.read_bytes()
        for p in (tmp_path / "made").rglob("*")
        if p.is_file()
    }


def left(root):
    return sorted(p.relative_to(root).as_posix() for p in root.rglob("*")) if root.exists() else []


def test_a_dataset_is_fetched_into_the_fields_layout(tmp_path, site):
    folder, address = site
    content = tarred(dtd_files(tmp_path) | {"dtd/imdb/not_wanted.mat": b""})
    (folder / "dtd-r1.0.1.tar.gz").write_bytes(content)
    archives = {"dtd": (replace(ARCHIVES["dtd"][0], checksum=md5(content)),)}
    root = tmp_path / "root"
    write(root / "dtd" / "labels" / "mine.txt", "stays")
    (root / "dtd" / "labels" / "mine.txt").rename(root / "dtd" / "mine.txt")
    (root / "dtd" / "labels").rmdir()
    assert fetch("dtd", root, address + "/", archives) == root / "dtd"
    assert sorted(p.name for p in (root / "dtd").iterdir()) == [
        "images",
        "labels",
        "mine.txt",
    ] and [p.name for p in root.iterdir()] == ["dtd"]
    assert rows("dtd", root / "dtd")[1].height == 36
    (folder / "dtd-r1.0.1.tar.gz").unlink()
    fetch("dtd", root, address, archives)  # all there: nothing is asked for


def test_zips_archives_in_archives_and_single_files(tmp_path, site):
    folder, address = site
    inner = tarred({"101_ObjectCategories/accordion/1.jpg": jpeg()})
    files = {
        "caltech-101.zip": zipped(
            {
                "caltech-101/101_ObjectCategories.tar.gz": inner,
                "caltech-101/Annotations.tar": b"",
                "__MACOSX/x": b"",
            }
        ),
        "EuroSAT.zip": zipped({"2750/River/1.jpg": jpeg()}),
        "102flowers.tgz": tarred({"jpg/image_00001.jpg": jpeg()}),
        "imagelabels.mat": b"labels",
        "setid.mat": b"ids",
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    archives = {
        name: tuple(
            replace(a, checksum=md5(files[a.url.rpartition("/")[2]])) for a in ARCHIVES[name]
        )
        for name in ("caltech101", "eurosat", "flowers102")
    }
    for name in archives:
        fetch(name, tmp_path / "root", address, archives)
    names = json.loads((tmp_path / "root/oxford_flowers/cat_to_name.json").read_text())
    assert len(names) == 102 and names["1"] == "pink primrose" and names["102"] == "blackberry lily"
    assert [name for name in left(tmp_path / "root") if "." in name] == [
        "caltech-101/101_ObjectCategories/accordion/1.jpg",
        "eurosat/2750/River/1.jpg",
        "oxford_flowers/cat_to_name.json",
        "oxford_flowers/imagelabels.mat",
        "oxford_flowers/jpg/image_00001.jpg",
        "oxford_flowers/setid.mat",
    ]


@pytest.mark.parametrize(
    "content, words",
    [
        (
            tarred({"dtd/images/a/1.jpg": b"", "../../../escaped.txt": b"x"}),
            "outside of the dataset's folder; nothing was kept",
        ),
        (tarred({"dtd/images/a/1.jpg": b""}, [("dtd/labels", "/etc")]), "nothing was kept"),
        (tarred({"dtd/images/a/1.jpg": b""}, [("dtd/labels", "../../../..")]), "nothing was kept"),
        (
            zipped({"dtd/images/a/1.jpg": b"", "../../../escaped.txt": b"x"}),
            r"holds '../../../escaped.txt', .* outside",
        ),
        (zipped({"/escaped.txt": b"x"}), "holds '/escaped.txt'"),
        (tarred({"dtd/images/a/1.jpg": b""}), "holds no 'dtd/labels'"),
        (b"neither zip nor tar", "cannot be unpacked"),
        (tarred({"dtd/images/a/1.jpg": os.urandom(5000)})[:-900], "cannot be unpacked"),
    ],
)
def test_a_bad_archive_leaves_nothing(tmp_path, site, content, words):
    folder, address = site
    (folder / "dtd-r1.0.1.tar.gz").write_bytes(content)
    with pytest.raises(InputError, match=words):
        fetch(
            "dtd",
            tmp_path / "a" / "root",
            address,
            {"dtd": (replace(ARCHIVES["dtd"][0], checksum=md5(content)),)},
        )
    assert left(tmp_path / "a" / "root") == [] and not list(tmp_path.rglob("escaped.txt"))


def test_a_wrong_checksum_or_address_leaves_nothing(tmp_path, site):
    folder, address = site
    (folder / "dtd-r1.0.1.tar.gz").write_bytes(b"something else")
    with pytest.raises(
        InputError,
        match=r'md5 sum is another one \(expected "fff73e5086ae6bdbea199a49dfb8a4c1", '
        r'got ".*nothing was kept',
    ):
        fetch("dtd", tmp_path / "root", address)
    assert left(tmp_path / "root") == []
    with pytest.raises(InputError, match="cannot be fetched .*404.*try again"):
        fetch("eurosat", tmp_path / "root", address)
    assert not (tmp_path / "root" / "eurosat").exists()


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_download_goes_on_from_where_it_was(tmp_path, ranges):
    content = tarred(dtd_files(tmp_path) | {"dtd/images/noise.bin": os.urandom(200_000)})
    asked = []

    class Breaks(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.headers["Range"])
            start = int(asked[-1][6:-1]) if asked[-1] and ranges else 0
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            self.wfile.write(content[start:][: 100_000 if len(asked) == 1 else None])

    server, address = serving(Breaks)
    archives = {"dtd": (Archive(f"{address}/dtd.tar.gz", md5(content), ARCHIVES["dtd"][0].places),)}
    root = tmp_path / "root"
    with pytest.raises(
        InputError, match=f"broke after 100000 of {len(content)} bytes; the next try goes on"
    ):
        fetch("dtd", root, archives=archives)
    assert not (root / "dtd").exists()
    fetch("dtd", root, archives=archives)
    assert asked == [None, "bytes=100000-"] and [p.name for p in root.iterdir()] == ["dtd"]
    assert rows("dtd", root / "dtd")[1].height == 36
    server.shutdown()
    server.server_close()
    with pytest.raises(InputError, match="cannot be fetched .*refused"):
        fetch("dtd", tmp_path / "other", archives=archives)
