"""Removing a method or a benchmark: one command, or for a method one entry; the rest follows."""

import re
import shutil
from pathlib import Path

import polars as pl
import pytest
from conftest import GONE, ROOT, run, with_values
from ruamel.yaml import YAML

from pipeline.errors import InputError
from pipeline.remove import main, remove
from pipeline.schema import check

TOP = YAML(typ="safe").load(ROOT / "params.yaml")
METHODS = [
    f"{place}.{kind}.{name}"
    for place, tables in (("methods", TOP["methods"]), ("study.methods", TOP["study"]["methods"]))
    for kind in ("zero_shot", "direct", "meta")
    for name in tables.get(kind, {})
]
BENCHMARKS = [f"benchmarks.{name}" for name in TOP["benchmarks"]]


@pytest.fixture
def path(tmp_path):
    return shutil.copy(ROOT / "params.yaml", tmp_path / "params.yaml")


def changed(path):
    """Lines that are gone, and lines that are new."""
    before, after = ((p).read_text().splitlines() for p in (ROOT / "params.yaml", path))
    return [line for line in before if line not in after], [x for x in after if x not in before]


@pytest.mark.parametrize("key", [*METHODS, *BENCHMARKS])
def test_an_entry_is_taken_out_wherever_it_stands(path, key):
    """What is left is sound without a remark, and nothing else has changed, comments included."""
    gone = remove(path, [key])
    name = key.rpartition(".")[2]
    assert key in gone and not check(path).remarks()
    lost, new = changed(path)
    assert set(new) <= {"  zero_shot: {}", "  direct: {}", "  pairs: []"}  # the last one there
    assert not [line for line in lost if line.strip().startswith("#")]
    left = YAML(typ="safe").load(path)
    if key.startswith("benchmarks."):
        named = [*left["benchmarks"], *left["templates"], *left["study"]["benchmarks"]]
        for source, of in left["protocols"].items():
            named += [source, *of.get("cross_domain", []), *of.get("cross_dataset", [])]
    else:
        owner = left["study"] if key.startswith("study.") else left["report"] | left
        named = [name for pair in owner["pairs"] for name in pair]
        for table in owner["methods"].values():
            named += list(table)
    assert name not in named


def test_a_comment_above_the_last_entry_stays(path):
    text = path.read_text().replace("  direct:\n", "  direct:\n    # a host of its own\n", 1)
    path.write_text(text.replace("  pairs:\n", "  pairs:\n  # who against whom\n"))
    remove(path, ["methods.direct.coop", "methods.meta.coop_gram"])
    lines = path.read_text().splitlines()
    assert "    # a host of its own" in lines and "  # who against whom" in lines
    assert not check(path).remarks() and YAML(typ="safe").load(path)["methods"]["direct"] == {}


def test_a_comment_above_the_last_target_stays(path):
    """An emptied list of a protocol is written as an emptied table is."""
    targets = "    cross_domain:\n    - broad_sketch\n    - broad_night\n    - broad_neon\n"
    one = "    cross_domain:\n    # another style\n    - broad_sketch\n"
    text = path.read_text().replace(f"{targets}    - broad_pixelated\n", one)
    assert one in text
    path.write_text(text)
    remove(path, ["benchmarks.broad_sketch"])
    assert "    # another style" in path.read_text().splitlines()
    assert YAML(typ="safe").load(path)["protocols"]["broad"]["cross_domain"] == []


def test_the_paper_s_file_too(path):
    """What somebody does not have, in one go."""
    source = ROOT / "profiles" / "paper.yaml"
    shutil.copy(source, path)
    keys = [f"benchmarks.{name}" for name in ("imagenet", "dtd", "imagenet_a", "caltech101")]
    assert "protocols.imagenet" in remove(path, keys) and not check(path).remarks()
    before, after = source.read_text().splitlines(), path.read_text().splitlines()
    assert not set(after) - set(before) and len(before) - len(after) > 40
    assert not [x for x in before if x not in after and x.strip().startswith("#")]


@pytest.mark.parametrize("key", [key for key in METHODS if key.startswith("methods.")])
def test_a_method_may_be_taken_out_of_its_table_alone(tmp_path, key):
    """By hand; its title and pairs are left out with a word each."""
    path = with_values(tmp_path / "params.yaml", {key: GONE})
    name = key.rpartition(".")[2]
    assert all(f"'{name}'" in remark for remark in check(path).remarks())


def test_pictures_are_drawn_as_long_as_somebody_reads_them(path):
    drawn = lambda: YAML(typ="safe").load(path)["world"]["benchmarks"]
    assert "world.benchmarks.food" in remove(path, ["benchmarks.food"]) and "food" not in drawn()
    four = [f"benchmarks.broad{x}" for x in ("", "_sketch", "_night", "_neon")]
    remove(path, four)
    assert "broad" in drawn()
    assert "world.benchmarks.broad" in remove(path, ["benchmarks.broad_pixelated"])
    assert "places" in drawn()  # labelled pictures of the study


def test_what_was_half_removed_by_hand_is_finished(tmp_path, monkeypatch, capsys):
    """The check of the file names the command that does it."""
    path = with_values(tmp_path / "params.yaml", {"benchmarks.things": GONE})
    with pytest.raises(InputError, match="python -m pipeline.remove benchmarks.things") as error:
        check(path)
    assert str(error.value).count("pipeline.remove") == 1
    monkeypatch.chdir(tmp_path)
    assert main(["benchmarks.things"]) == 0 and not check(path).remarks()
    assert "protocols.broad.cross_dataset" in capsys.readouterr().out


@pytest.mark.parametrize(
    "keys, words",
    [
        (["benchmarks.fod"], "did you mean 'food'"),
        (["methods.direct.gone"], "'methods.direct.gone': there is none"),
        (["food"], "for example benchmarks.food"),
        (["episodes.shifted"], "can be removed"),
        (BENCHMARKS, "study.benchmarks"),  # the study needs one
    ],
)
def test_what_cannot_go_leaves_the_file_as_it_was(path, keys, words):
    before = path.read_bytes()
    with pytest.raises(InputError, match=words):
        remove(path, keys)
    assert path.read_bytes() == before and [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.whole
def test_dvc_resolves_what_is_left(tmp_path):
    """And has no stage of an entry that is gone."""
    from dvc.repo import Repo

    (tmp_path / "study").mkdir()
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    shutil.copy(ROOT / "study" / "stages.yaml", tmp_path / "study" / "dvc.yaml")
    repo = Repo.init(str(tmp_path), no_scm=True)
    for key in [*METHODS, *BENCHMARKS]:
        path = shutil.copy(ROOT / "params.yaml", tmp_path / "params.yaml")
        remove(path, [key])
        repo._reset()
        place, _, name = key.rpartition(".")
        file = tmp_path / ("study" if place.startswith("study") else "") / "dvc.yaml"
        names = [s.name for s in repo.index.stages if Path(s.path) == file]
        drawn = [f"draw_benchmark@{name}"]  # others may read the same pictures
        left = [n for n in names if n not in drawn and name in re.split("[@-]", n)]
        assert len(names) > 40 and not left, key


@pytest.mark.whole
def test_plots_are_shown_with_whatever_methods_there_are(tmp_path):
    """The tables name their lines; with none at all, nothing fails."""
    from pipeline.report.results import curves_table, epochs_table

    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    shutil.copytree(ROOT / ".dvc" / "plots", tmp_path / ".dvc" / "plots")
    path = shutil.copy(ROOT / "params.yaml", tmp_path / "params.yaml")
    remove(path, ["methods.meta.unigram"])
    (tmp_path / ".dvc" / "config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
    report = tmp_path / "data" / "report"
    report.mkdir(parents=True)
    columns = {"step": [0, 1, 2], "query_loss": [3.0, 2.0, 1.0], "raw_agreement": [0.5, None, 0.25]}
    epochs = [("coop", 2, "base", 60.5), ("clip", 0, "base", 50.5), ("coop", 5, "base", 61.5)]
    of = pl.DataFrame(epochs, schema=["method", "epoch", "head", "top1"], orient="row")

    def show(curves, epochs):
        curves_table(curves, {"query_loss": ""}, "nats").write_csv(report / "loss.csv")
        curves_table(curves, {"raw_agreement": ", raw"}, "cosine").write_csv(
            report / "agreement.csv"
        )
        for half in ("base", "new"):
            table = epochs_table(epochs, half, {"coop": "CoOp", "clip": "CLIP"})
            table.write_csv(report / f"epochs-{half}.csv")
        run("dvc", "plots", "show", cwd=tmp_path)
        return (tmp_path / "dvc_plots" / "index.html").read_text()

    page = show({"CoOp + GRAM": pl.DataFrame(columns)}, of)
    for word in ("query loss at adapted tokens", "Fig 3b", "base accuracy while tuning"):
        assert word in page
    assert '"CoOp + GRAM, raw"' in page and '"0.25"' in page and '"CLIP"' in page
    assert page.count('"line": "CLIP"') == 2  # where it learns nothing, after every epoch
    assert "VPT" not in page
    assert "CoOp" not in show({}, of.clear())
