"""Tasks from a labelled dataset: its layouts, its pictures per class, and what the tasks show."""

import numpy as np
import pytest
from conftest import ROOT
from test_benchmarks import folder

from pipeline.benchmarks.labelled import labelled_pictures, labelled_pool, read_labelled, write_labelled
from pipeline.benchmarks.reader import Pictures
from pipeline.clip.backbone import image_features, load_backbone, open_picture
from pipeline.episodes.params import Episodes
from pipeline.episodes.tasks import draw, keys_of
from pipeline.errors import InputError

FLAT = [f"{c}/{i}.jpg" for c in ("pine_tree", "castle", "cactus") for i in range(6)]
IN_DOMAINS = [f"train/{d}/{name}" for d in ("photo", "sketch") for name in FLAT]


def test_classes_are_topics_and_folders_above_them_domains(tmp_path):
    table = read_labelled(Pictures(folder(tmp_path, IN_DOMAINS)), 20, seed=0)
    assert table["key"].to_list() == sorted(IN_DOMAINS)
    assert table.select("topic", "name").unique().sort("topic").rows() == [(0, "cactus"), (1, "castle"), (2, "pine tree")]
    assert [table.filter(key=key)["domain"][0] for key in ("train/photo/castle/0.jpg", "train/sketch/castle/0.jpg")] == [0, 1]


def test_a_test_part_is_left_alone(tmp_path):
    table = read_labelled(Pictures(folder(tmp_path, [*IN_DOMAINS, "test/photo/castle/9.jpg"])), 20, seed=0)
    assert not [key for key in table["key"] if key.startswith("test/")]


def test_as_many_pictures_of_a_class_as_asked_for(tmp_path):
    pictures = Pictures(folder(tmp_path, FLAT))
    one, again, other = (read_labelled(pictures, 4, seed)["key"].to_list() for seed in (1, 1, 2))
    assert one == again != other
    assert [sum(key.startswith(c) for key in one) for c in ("cactus", "castle", "pine_tree")] == [4, 4, 4]


@pytest.mark.parametrize("names, words", [
    (["1.jpg"], "'1.jpg' does not fit"),
    (["train/a/b/c/1.jpg"], "'train/a/b/c/1.jpg' does not fit"),
    (["notes.txt"], "holds no pictures"),
])
def test_other_layouts_are_explained(tmp_path, names, words):
    with pytest.raises(InputError, match=words):
        read_labelled(Pictures(folder(tmp_path, names)), 4, seed=0)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    top = tmp_path_factory.mktemp("labelled")
    pictures, backbone = Pictures(folder(top / "pictures", FLAT)), load_backbone(ROOT / "demo" / "backbone")
    table = read_labelled(pictures, 6, seed=0)
    (top / "out").mkdir()
    write_labelled(table, pictures, backbone, top / "out", lambda x, _: x)
    return top / "out", pictures, backbone


def test_shards_hold_features_and_files(written):
    out, pictures, backbone = written
    pool = labelled_pool(out)
    assert pool.names == ["cactus", "castle", "pine tree"] and pool.topic.tolist() == [0] * 6 + [1] * 6 + [2] * 6
    expected = image_features(backbone, (backbone.test_view(open_picture(pictures.read(key))) for key in pool.keys)).numpy()
    assert np.allclose(pool.features, expected, atol=1e-3)
    assert labelled_pictures(out, {"castle/1.jpg"}) == {"castle/1.jpg": pictures.read("castle/1.jpg")}


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
    assert {t for task in tasks for t in task.topics.tolist()} == {0, 1, 2} and keys_of(tasks, pool) <= set(pool.keys)
    with pytest.raises(InputError, match="only 0 of 3 topics have 2 . 4 pictures and two domains"):
        draw(pool, settings, **sizes)
