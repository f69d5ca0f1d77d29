"""Topics that a person merges, renames or drops."""

import subprocess
import sys

import numpy as np
import polars as pl
import pytest
from conftest import ROOT

from pipeline.artifacts import write_table
from pipeline.clustering.edits import Edits, apply_edits, load_edits
from pipeline.clustering.schemas import LABELS, TOPICS
from pipeline.errors import InputError
from pipeline.pairs.schemas import KEPT

NAMES = ["bear", "bus", "polar bear", "sprite", "pie"]
TOPIC = np.array([0, 1, 2, 3, 4, -1, 2])


def edit(**changes):
    return apply_edits(
        TOPIC, NAMES, Edits(**({"merge": {}, "rename": {}, "drop": []} | changes)), "edits.yaml"
    )


def test_no_edits_change_nothing():
    topic, names = edit()
    assert topic.tolist() == TOPIC.tolist() and names == NAMES
    assert load_edits(ROOT / "topic_edits.yaml") == Edits(merge={}, rename={}, drop=[])


def test_all_three_at_once():
    topic, names = edit(
        merge={"ursine": ["polar bear", "bear"]}, rename={"pie": "apple pie"}, drop=["sprite"]
    )
    assert names == ["ursine", "bus", "apple pie"]
    assert topic.tolist() == [0, 1, 0, -1, 2, -1, 0]


def test_a_merged_topic_may_keep_a_name_and_two_may_swap_theirs():
    assert edit(merge={"bear": ["bear", "polar bear"]})[1] == ["bear", "bus", "sprite", "pie"]
    assert edit(rename={"bus": "pie", "pie": "bus"})[1] == [
        "bear",
        "pie",
        "polar bear",
        "sprite",
        "bus",
    ]


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"drop": ["beer"]}, "edits.yaml: there is no topic 'beer'; did you mean 'bear'?"),
        ({"drop": ["bear"], "rename": {"bear": "b"}}, "topic 'bear' is edited twice"),
        ({"drop": ["pie", "pie"]}, "topic 'pie' is edited twice"),
        ({"rename": {"pie": "bus"}}, "two topics would be called 'bus'"),
        ({"merge": {"bus": ["bear", "polar bear"]}}, "two topics would be called 'bus'"),
        ({"drop": NAMES[:4]}, "leaves 1 topics"),
    ],
)
def test_edits_that_cannot_be_made(changes, words):
    with pytest.raises(InputError) as error:
        edit(**changes)
    assert words in str(error.value)


@pytest.mark.parametrize(
    "text, words",
    [
        ("merge: {a: [b]}\nrename: {}\ndrop: []", "parameter 'merge.a'"),
        ("merge: {}\nrename: {}\ndrop: []\nremove: [a]", "unknown parameter 'remove'"),
        ("merge: {}\nrename: {}", "parameter 'drop' is missing"),
    ],
)
def test_a_file_that_is_not_as_it_should_be(tmp_path, text, words):
    (tmp_path / "edits.yaml").write_text(text)
    with pytest.raises(InputError, match=words):
        load_edits(tmp_path / "edits.yaml")


def test_the_stage_writes_both_files_and_counts_words_anew(tmp_path):
    texts = (
        ["a polar bear"] * 6
        + ["a brown bear"] * 6
        + ["a red bus"] * 6
        + ["an apple pie"] * 6
        + ["one tall tree"] * 6
        + ["a green frog"] * 6
    )
    keys = [f"k{i:02d}" for i in range(len(texts))]
    kept = pl.DataFrame(
        {
            "key": keys,
            "caption": texts,
            "score": pl.Series([1.0] * 36, dtype=pl.Float32),
            "kept": [True] * 36,
            "reason": [""] * 36,
        }
    )
    topics = pl.DataFrame(
        {"key": keys, "topic": np.repeat(np.arange(6, dtype=np.int32), 6)}
    ).with_columns(pl.lit(1.0, pl.Float32).alias(c) for c in ("strength",))
    for table, schema, name in ((kept, KEPT, "kept"), (topics, TOPICS, "topics")):
        write_table(table.to_arrow(), tmp_path / f"{name}.parquet", schema)
    (tmp_path / "edits.yaml").write_text(
        "merge: {bear: [polar bear, brown bear]}\nrename: {}\ndrop: [apple pie]\n"
    )
    (tmp_path / "params.yaml").write_text(
        (ROOT / "params.yaml")
        .read_text()
        .replace("edits: topic_edits.yaml", f"edits: {tmp_path}/edits.yaml")
    )
    done = subprocess.run(
        [
            sys.executable,
            "stages/label.py",
            "--params",
            tmp_path / "params.yaml",
            "--kept",
            tmp_path / "kept.parquet",
            "--topics",
            tmp_path / "topics.parquet",
            "--clusters",
            tmp_path / "clusters.parquet",
            "--out",
            tmp_path / "labels.parquet",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    labels, clusters = (
        pl.read_parquet(tmp_path / "labels.parquet"),
        pl.read_parquet(tmp_path / "clusters.parquet"),
    )
    assert (
        labels.columns == LABELS.names
        and labels["name"].to_list() == ["bear", "red bus", "tall tree", "green frog"]
        and labels["size"].to_list() == [12, 6, 6, 6]
    )
    assert {"polar bear", "brown bear"} <= set(labels["words"][0].to_list())  # of both halves
    assert clusters["topic"].to_list() == [0] * 12 + [1] * 6 + [-1] * 6 + [2] * 6 + [3] * 6
