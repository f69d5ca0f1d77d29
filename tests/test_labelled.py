"""Tasks from a labelled dataset: its layouts, its pictures per class, and what the tasks show."""

import shutil

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from pydantic import ValidationError
from test_benchmarks import folder

from pipeline.benchmarks.labelled import (
    labelled_pictures,
    labelled_pool,
    read_labelled,
    write_labelled,
)
from pipeline.benchmarks.reader import Pictures
from pipeline.clip.backbone import image_features, load_backbone, open_picture
from pipeline.episodes.params import Episodes, Labelled
from pipeline.episodes.tasks import draw, rows_of
from pipeline.errors import InputError

FLAT = [f"{c}/{i}.jpg" for c in ("pine_tree", "castle", "cactus") for i in range(6)]
IN_DOMAINS = [f"train/{d}/{name}" for d in ("photo", "sketch") for name in FLAT]


def test_classes_are_topics_and_folders_above_them_domains(tmp_path):
    table = read_labelled(Pictures(folder(tmp_path, IN_DOMAINS)), 20, seed=0)
    assert table["key"].to_list() == sorted(IN_DOMAINS)
    assert table.select("topic", "name").unique().sort("topic").rows() == [
        (0, "cactus"),
        (1, "castle"),
        (2, "pine tree"),
    ]
    assert [
        table.filter(key=key)["domain"][0]
        for key in ("train/photo/castle/0.jpg", "train/sketch/castle/0.jpg")
    ] == [0, 1]


def test_a_test_part_is_left_alone(tmp_path):
    table = read_labelled(
        Pictures(folder(tmp_path, [*IN_DOMAINS, "test/photo/castle/9.jpg"])), 20, seed=0
    )
    assert not [key for key in table["key"] if key.startswith("test/")]


def test_as_many_pictures_of_a_class_as_asked_for(tmp_path):
    pictures = Pictures(folder(tmp_path, FLAT))
    one, again, other = (read_labelled(pictures, 4, seed)["key"].to_list() for seed in (1, 1, 2))
    assert one == again != other
    assert [sum(key.startswith(c) for key in one) for c in ("cactus", "castle", "pine_tree")] == [
        4,
        4,
        4,
    ]


@pytest.mark.parametrize(
    "names, words",
    [
        (["1.jpg"], "'1.jpg' does not fit"),
        (["train/a/b/c/1.jpg"], "'train/a/b/c/1.jpg' does not fit"),
        (["notes.txt"], "holds no pictures"),
    ],
)
def test_other_layouts_are_explained(tmp_path, names, words):
    with pytest.raises(InputError, match=words):
        read_labelled(Pictures(folder(tmp_path, names)), 4, seed=0)


WEB = [f"google/q{query:04d}/{i} {query}.jpg" for query in range(1, 6) for i in range(3)]
SYNSETS = (
    "n01440764 tench, Tinca tinca\nn02012849 crane\nn03126707 crane\nn99999999 \nred kite, bird\n"
)


def listed(tmp_path, lines, synsets=SYNSETS):
    top = folder(tmp_path / "web", WEB)
    (top / "info").mkdir()
    (top / "info" / "list.txt").write_text("\n".join(lines) + "\n")
    (top / "info" / "synsets.txt").write_text(synsets)
    return Pictures(top)


def read_list(pictures, per_class=20, names="info/synsets.txt"):
    return read_labelled(pictures, per_class, 0, "info/list.txt", names)


def test_a_list_tells_the_classes_in_webvision_s_layout(tmp_path):
    """From a folder or zip, in any order; a name ends at its comma, and labels of one name are
    one class.
    """
    lines = [f"{name} {label}" for name, label in zip(WEB, np.repeat([0, 1, 2, 4, 4], 3))]
    pictures = listed(tmp_path, lines[::-1] + lines[:1])
    table = read_list(pictures)
    assert table["key"].to_list() == WEB and table["domain"].unique().to_list() == [0]
    assert table.select("topic", "name").unique().sort("topic").rows() == [
        (0, "crane"),
        (1, "red kite"),
        (2, "tench"),
    ]
    assert table["name"].to_list() == ["tench"] * 3 + ["crane"] * 6 + ["red kite"] * 6
    assert read_list(pictures, per_class=2)["name"].value_counts()["count"].to_list() == [2, 2, 2]
    shutil.make_archive(str(tmp_path / "web"), "zip", tmp_path / "web")
    assert read_list(Pictures(tmp_path / "web.zip")).equals(table)


@pytest.mark.parametrize(
    "line, words",
    [
        ("google/q0001/9.jpg 0", "list.txt, line 2: .*web has no picture 'google/q0001/9.jpg'"),
        (
            f"{WEB[1]} 5",
            "list.txt, line 2: label 5 has no name in info/synsets.txt, which has 5 lines",
        ),
        (f"{WEB[1]} 3", "list.txt, line 2: label 3 has no name"),
        (f"{WEB[1]} tench", "list.txt, line 2: .* is not '<picture> <label>'"),
        (f"{WEB[1]} -1", "is not '<picture> <label>'"),
        ("7", "line 2: '7' is not"),
        (f"{WEB[0]} 1", "line 2: '.*' is listed as 'tench' and as 'crane'"),
    ],
)
def test_a_wrong_line_of_a_list_is_explained(tmp_path, line, words):
    with pytest.raises(InputError, match=words):
        read_list(listed(tmp_path, [f"{WEB[0]} 0", line]))


def test_a_missing_or_empty_list_is_explained(tmp_path):
    pictures = listed(tmp_path, [])
    with pytest.raises(InputError, match="there is no file 'info/names.txt' in it"):
        read_list(pictures, names="info/names.txt")
    (pictures.path / "info" / "list.txt").write_text("")
    with pytest.raises(InputError, match="list.txt: holds no pictures"):
        read_list(pictures)


def test_a_list_needs_names():
    entry = dict(
        path="", per_class=1, episodes=Episodes(support="all_domains", tasks=1, confusable=0)
    )
    Labelled(**entry, list="a", names="b")
    with pytest.raises(ValidationError, match="'list' and 'names' come together"):
        Labelled(**entry, list="a", names=None)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    top = tmp_path_factory.mktemp("labelled")
    pictures, backbone = (
        Pictures(folder(top / "pictures", FLAT)),
        load_backbone(ROOT / "demo" / "backbone"),
    )
    for number, name in enumerate(FLAT):  # no two alike
        Image.new("RGB", (8, 8), (10 * number, 0, 0)).save(top / "pictures" / name)
    table = read_labelled(pictures, 6, seed=0)
    (top / "out").mkdir()
    write_labelled(table, pictures, backbone, top / "out", lambda x, _: x)
    return top / "out", pictures, backbone


def test_shards_hold_features_and_files(written):
    out, pictures, backbone = written
    pool = labelled_pool(out)
    assert (
        pool.names == ["cactus", "castle", "pine tree"]
        and pool.topic.tolist() == [0] * 6 + [1] * 6 + [2] * 6
    )
    expected = image_features(
        backbone, (backbone.test_view(open_picture(pictures.read(key))) for key in pool.keys)
    ).numpy()
    assert np.allclose(pool.features, expected, atol=1e-3)
    rows = np.array([7, 0, 17, 7])
    assert labelled_pictures(out)(rows) == [pictures.read(pool.keys[row]) for row in rows]


def test_pictures_are_read_from_several_shards(written, tmp_path, monkeypatch):
    _, pictures, backbone = written
    monkeypatch.setattr("pipeline.benchmarks.labelled.PER_SHARD", 7)
    table = read_labelled(pictures, 6, seed=0)
    write_labelled(table, pictures, backbone, tmp_path, lambda x, _: x)
    rows = np.random.default_rng(0).permutation(18)[:12]
    assert (
        labelled_pictures(tmp_path)(rows) == [pictures.read(table["key"][int(row)]) for row in rows]
        and len(list(tmp_path.iterdir())) == 3
    )


def test_shards_that_are_there_stay(written):
    out, pictures, backbone = written
    before = (out / "00000.parquet").stat().st_mtime_ns
    write_labelled(read_labelled(pictures, 6, seed=0), pictures, backbone, out, lambda x, _: x)
    assert (out / "00000.parquet").stat().st_mtime_ns == before


def test_tasks_need_no_domains_unless_their_support_comes_from_one(written):
    pool = labelled_pool(written[0])
    settings = Episodes(support="all_domains", tasks=5, confusable=0.5)
    sizes = dict(ways=3, shots=2, queries=4, seed=0)
    tasks = draw(pool, settings, **sizes, least_domains=1)
    assert {t for task in tasks for t in task.topics.tolist()} == {0, 1, 2} and set(
        rows_of(tasks)
    ) <= set(range(18))
    with pytest.raises(InputError, match="only 0 of 3 topics have 2 . 4 pictures and two domains"):
        draw(pool, settings, **sizes)


def test_a_damaged_shard_is_named(written, tmp_path):
    shutil.copy(written[0] / "00000.parquet", tmp_path)
    read = labelled_pictures(tmp_path)
    content = (tmp_path / "00000.parquet").read_bytes()
    (tmp_path / "00000.parquet").write_bytes(content[:4] + bytes(len(content) - 4))
    with pytest.raises(InputError, match="00000.parquet: damaged .*delete it"):
        read(np.arange(18))
