"""Names that pictures choose, and topics of one name that become one."""

import subprocess
import sys

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from conftest import ROOT
from ruamel.yaml import YAML

from pipeline.artifacts import numbered, to_vectors, write_table
from pipeline.clip.backbone import load_backbone, text_features
from pipeline.clustering import naming
from pipeline.clustering.labels import count_words, rank_words, unique_names
from pipeline.clustering.naming import (
    SHOWN,
    TEMPLATE,
    merge_same,
    nearby,
    picture_ranks,
    rank_by_pictures,
    shown_rows,
    told_apart,
)
from pipeline.clustering.params import Label
from pipeline.clustering.schemas import TOPICS
from pipeline.errors import InputError
from pipeline.pairs.schemas import KEPT, features_schema

# Eq 3 puts the word first that stands more often; what the pictures show is the other one.
CAPTIONS = {
    "lion": "cactus cactus lion",
    "bicycle": "violin violin bicycle",
    "banana": "sandal sandal banana",
    "piano": "rocket rocket piano",
}
SETTINGS = Label(
    formula="eq3", words=2, longest_phrase=1, min_captions=1, stop_words=[], edits="edits.yaml"
)
BACKBONE = ROOT / "demo" / "backbone"


def never(_names):
    raise AssertionError("nothing is to be encoded")


def test_told_apart_is_the_share_of_right_pairs():
    own = np.array([[3.0, 0.0, 1.0], [1.0, 0.0, 1.0]])
    others = np.array([[2.0, 5.0, 1.0], [0.0, 7.0, 1.0]])
    assert told_apart(own, others).tolist() == [3 / 4, 0.0, 1 / 2]


def test_a_name_is_judged_by_the_topic_s_neighbours():
    """A word that fits all pictures of a kind is no name among them, however well it fits."""
    kinds = np.eye(4, dtype=np.float32)
    lions, tigers = [1, 0.9, 0, 0], [0.9, 1, 0, 0]
    pictures = [np.array([row] * 3, np.float16) for row in (lions, tigers, kinds[2], kinds[3])]
    text = np.stack([[0.7, 0.7, 0, 0], kinds[0], kinds[1], kinds[2]]).astype(np.float32)
    ranked = pl.DataFrame(
        {"topic": [0, 1, 0, 1, 2, 3], "word": [0, 0, 1, 2, 3, 0], "score": [6.0, 5, 4, 3, 2, 1]}
    )
    found = rank_by_pictures(ranked, text, pictures)
    assert unique_names(found, np.array(["cat", "lion", "tiger", "cup"])) == {
        0: "lion",
        1: "tiger",
        2: "cup",
        3: "cat",
    }
    assert found.filter(topic=0)["word"].to_list() == [1, 0] and len(found) == len(ranked)
    # of lions against three tigers, which are as much cats, and six other things
    assert found.filter(topic=0)["score"].to_list() == pytest.approx([1.0, (3 / 2 + 6) / 9])


def test_equal_words_keep_the_order_of_their_scores():
    ranked = pl.DataFrame({"topic": [1, 0, 0, 1], "word": [2, 1, 0, 3], "score": [4.0, 3, 2, 1]})
    same = np.ones((4, 2), np.float32)
    found = rank_by_pictures(ranked, same, [np.ones((2, 2), np.float16)] * 2)
    assert found["word"].to_list() == [2, 1, 0, 3] and found["score"].to_list() == [0.5] * 4


def test_of_a_large_topic_a_few_pictures_are_shown():
    topic = np.array([1] * 1000 + [-1] * 5 + [0] * 3)
    of_0, of_1 = shown_rows(topic)
    assert of_0.tolist() == [1005, 1006, 1007]
    assert len(of_1) == SHOWN == len(set(of_1.tolist())) and of_1[0] == 0 and of_1[-1] > 950


def test_neighbours_are_other_topics(monkeypatch):
    """Also where topics have the same mean, and the search may put others before the topic."""
    monkeypatch.setattr(naming, "NEARBY", 8)
    pictures = [np.ones((2, 3), np.float16)] * 12 + [np.eye(3, dtype=np.float16)[:1]] * 2
    found = nearby(pictures)
    assert found.shape == (14, 8) and found[12][0] == 13
    assert all(len({i, *row}) == 9 for i, row in enumerate(found.tolist()))
    assert nearby(pictures[:3]).shape == (3, 2)


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """Keys, captions and topics of four kinds, and CLIP features that show what each is."""
    folder = tmp_path_factory.mktemp("shown")
    rng = np.random.default_rng(0)
    texts = [text for text in CAPTIONS.values() for _ in range(8)]
    keys = [f"k{i:02d}" for i in rng.permutation(len(texts))]
    image = text_features(load_backbone(BACKBONE), [TEMPLATE.format(c) for c in CAPTIONS]).numpy()
    image = np.repeat(image, 8, axis=0) + 0.15 * rng.normal(size=(32, image.shape[1]))
    order = np.argsort(keys)
    schema = features_schema(image.shape[1])
    (folder / "features").mkdir()
    columns = [[keys[i] for i in order], to_vectors(image[order]), to_vectors(image[order])]
    write_table(
        pa.table(columns, schema=schema),
        folder / "features" / "00000.parquet",
        numbered(schema, 0, 1),
    )
    table = pl.DataFrame(
        {"key": keys, "caption": texts, "topic": np.repeat(np.arange(4, dtype=np.int32), 8)}
    ).sort("key")
    return folder, table


def test_pictures_choose_among_a_topic_s_own_words(shown):
    folder, table = shown
    counted = count_words(table["caption"].to_list(), SETTINGS)
    topic = table["topic"].to_numpy()
    ranked = rank_words(counted, topic, SETTINGS)
    louder = ["cactus", "violin", "sandal", "rocket"]
    assert unique_names(ranked, counted.words) == dict(enumerate(louder))
    found = picture_ranks(
        ranked, counted.words, topic, table["key"], SETTINGS, folder / "features", str(BACKBONE)
    )
    assert unique_names(found, counted.words) == dict(enumerate(CAPTIONS))
    # of one word a topic, there is nothing to choose; the others come behind it
    one = SETTINGS.model_copy(update={"words": 1})
    found = picture_ranks(
        ranked, counted.words, topic, table["key"], one, folder / "features", str(BACKBONE)
    )
    assert unique_names(found, counted.words) == dict(enumerate(louder))
    assert sorted(found.rows()[4:]) == sorted(ranked.rows()[4:])


def test_topics_of_one_name_are_one():
    names = ["dog", "ball", None, "dog", "beach", None, "ball", "dog"]
    number, after = merge_same(names, [5, 9, 1, 2, 3, 1, 1, 4], 1, never)
    assert after == ["dog", "ball", None, "beach", None]
    assert number.tolist() == [0, 1, 2, 0, 3, 4, 1, 0, -1]


def test_names_that_mean_the_same_are_one_but_not_by_way_of_a_third():
    """Angles of 0, 25, 50.5 and 90 degrees: no ties; the largest is the one at 25, or at 0."""
    names = ["a", "b", "c", "d"]
    angles = dict(zip(names, np.radians([0, 25, 50.5, 90]), strict=True))

    def encode(texts):
        return np.array([[np.cos(angles[t]), np.sin(angles[t])] for t in texts])

    number, after = merge_same(names, [2, 9, 3, 1], 0.9, encode)
    assert after == ["b", "d"] and number.tolist() == [0, 0, 0, 1, -1]
    number, after = merge_same(names, [9, 2, 3, 1], 0.9, encode)
    assert after == ["a", "c", "d"] and number.tolist() == [0, 0, 1, 2, -1]
    number, after = merge_same(names, [9, 5, 3, 1], 0.9, encode)  # b joins a, which c is far from
    assert after == ["a", "c", "d"] and number.tolist() == [0, 0, 1, 2, -1]
    # two topics of one name are larger together
    assert merge_same(["a", "b", "b", "d"], [5, 3, 3, 1], 0.9, encode)[1] == ["b", "d"]
    number, after = merge_same(names, [9, 2, 3, 1], 0.92, encode)
    assert after == names and number.tolist() == [0, 1, 2, 3, -1]


def test_one_topic_of_all_is_an_error():
    with pytest.raises(InputError, match="'label.merge_same' of 0.5 makes one of all 3 topics"):
        merge_same(["a", "b", "c"], [1, 1, 1], 0.5, lambda names: np.ones((len(names), 1)))


def labelled(folder, table, edits="", **changes):
    """What the stage makes of the captions: its words, names, and topic per key."""
    kept = table.select(
        "key", "caption", score=pl.lit(1.0, pl.Float32), kept=pl.lit(True), reason=pl.lit("")
    )
    topics = table.select("key", "topic", strength=pl.lit(1.0, pl.Float32))
    write_table(kept.to_arrow(), folder / "kept.parquet", KEPT)
    write_table(topics.to_arrow(), folder / "topics.parquet", TOPICS)
    (folder / "edits.yaml").write_text(f"merge: {{}}\nrename: {{{edits}}}\ndrop: []\n")
    yaml = YAML()
    params = yaml.load(ROOT / "params.yaml")
    params["backbone"]["path"] = str(BACKBONE)
    params["label"].update(
        {"edits": str(folder / "edits.yaml"), "words": 2, "longest_phrase": 1} | changes
    )
    yaml.dump(params, folder / "params.yaml")
    names = "params", "kept", "topics", "features", "clusters", "out", "metrics"
    suffix = {"params": ".yaml", "features": "", "metrics": ".json"}
    files = [(f"--{n}", folder / f"{n}{suffix.get(n, '.parquet')}") for n in names]
    done = subprocess.run(
        [sys.executable, "stages/label.py", *(part for pair in files for part in pair)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    names = pl.read_parquet(folder / "out.parquet")["name"].to_list()
    return done.stdout, names, pl.read_parquet(folder / "clusters.parquet")


@pytest.mark.whole
def test_the_stage_chooses_merges_and_lets_edits_win(shown):
    """Lions in two topics, of which pictures make one name: one topic with every caption, and what
    a person calls it counts.
    """
    folder, table = shown
    more = table.filter(topic=0).with_columns(
        pl.lit("garlic garlic lion").alias("caption"), topic=pl.lit(4, pl.Int32)
    )
    table = pl.concat(
        [table.filter(pl.col("key").is_in(more["key"][:4].implode()).not_()), more[:4]]
    )
    said, names, clusters = labelled(
        folder, table, "piano: upright", choose="pictures", merge_same=1
    )
    assert names == ["lion", "bicycle", "banana", "upright"]
    assert "5 were found, and 1 joined" in said
    assert (
        clusters.sort("key").rows()
        == table.sort("key").select("key", pl.col("topic").replace(4, 0)).rows()
    )
