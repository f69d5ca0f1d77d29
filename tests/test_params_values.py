"""Values of params.yaml that pass their type, and would fail late, or make something else."""

import json
import re
import subprocess
import sys

import pytest
from conftest import GONE, ROOT, run

from pipeline import engine
from pipeline.benchmarks.params import Rate
from pipeline.clustering.params import Topics
from pipeline.device import device
from pipeline.errors import InputError
from pipeline.params import load_params, read_yaml
from pipeline.remove import remove
from pipeline.schema import check, lacking
from pipeline.stage import workers
from pipeline.sweep import combinations


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


COOP = {"prompt": "coop"}
SOUND = json.dumps(read_yaml(ROOT / "params.yaml"))


def with_values(path, changes):
    """params.yaml with other values, without its comments, as JSON: that is YAML, too."""
    top = json.loads(SOUND)
    for key, value in changes.items():
        *above, last = key.split(".") if isinstance(key, str) else key
        here = top
        for part in above:
            here = here[part]
        if value is GONE:
            del here[last]
        else:
            here[last] = value
    path.write_text(json.dumps(top))
    return path


@pytest.mark.parametrize(
    "changes, words",
    [
        # numbers of 64 bits that 32 do not hold
        ({"inner_lr": 1e-50}, ["parameter 'inner_lr'", "32 bits"]),
        ({"outer_lr": 1e-39}, ["parameter 'outer_lr'", "32 bits"]),
        ({"outer.weight_decay": 1e39}, ["'outer.weight_decay'", "32 bits"]),
        ({"outer.clip_norm": 1e-46}, ["'outer.clip_norm'", "32 bits"]),
        ({"regulator.bias": 1e-45}, ["'regulator.bias'", "32 bits"]),
        ({"regulator.weight_std": 1e300}, ["'regulator.weight_std'", "32 bits"]),
        ({"tuning.warmup_lr": 1e-60}, ["'tuning.warmup_lr'", "32 bits"]),
        ({"tuning.lr_factor_of.vpt": 1e-60}, ["'tuning.lr_factor_of.vpt'", "32 bits"]),
        ({"tuning.lr_factor_of.vpt": 1e-37}, ["tuning.lr_factor_of.vpt", "'tuning.lr'"]),
        (
            {"methods.meta.unigram.inner_lr_factor": 1.2e-38},
            ["methods.meta.unigram.inner_lr_factor", "'inner_lr' 0.5"],
        ),
        ({"meta_steps": 2**64}, ["'meta_steps'", "64 bits"]),
        # texts
        ({"backbone.path": ""}, ["'backbone.path'", "is empty"]),
        ({"label.edits": "topic_edits.yaml "}, ["'label.edits'", "space"]),
        ({"methods.titles.coop": " "}, ["'methods.titles.coop'", "is empty"]),
        ({"label.stop_words": ["photo", ""]}, ["'label.stop_words.1'", "is empty"]),
        ({"source.table": "a\tb.tsv"}, ["'source.table'", "control character"]),
        # a section that is none
        ({"topics": None}, ["'topics'", "it is empty", "`key: value`"]),
        ({"topics": 5}, ["'topics'", "it is 5", "`key: value`"]),
        ({"topics": [1]}, ["'topics'", "it is [1]", "`key: value`"]),
        ({"benchmarks": None}, ["'benchmarks'", "it is empty"]),
        # what a later stage refuses
        ({"topics.min_dist": 5}, ["'topics.min_dist'", "less than or equal to 1"]),
        ({"topics.fit_on": 15}, ["topics.fit_on is 15", "'topics.neighbours' (15)"]),
        ({"topics.fit_on": 3, "topics.neighbours": 2}, ["'topics.components' (5)"]),
        ({"topics.fit_on": 100, "topics.min_cluster_size": 101}, ["'topics.min_cluster_size'"]),
        ({"topics.fit_on": 100, "topics.min_samples": 100}, ["'topics.min_samples' (100)"]),
        ({"topics.map_on": 10}, ["topics.map_on is 10", "'topics.neighbours'"]),
        ({"label.language": "EN"}, ["label.language is 'EN'", "did you mean 'en'?"]),
        ({"label.language": "english"}, ["label.language is 'english'"]),
        (
            {"outer.keep": "best", "held_out_topics": 0},
            ["outer.keep is 'best'", "'held_out_topics' is 0"],
        ),
        ({"methods.direct.coop.depth": 5}, ["methods: 'coop'", "text tower has 4 blocks"]),
        (
            {"study.methods.meta.vpt_gram.depth": 9},
            ["study.methods: 'vpt_gram'", "vision tower has 4 blocks"],
        ),
        ({"context_tokens": 22}, ["methods: 'coop' learns 22 tokens", "reads 24"]),
        # by which nothing would be kept
        ({"filter.min_side": 65}, ["filter.min_side is 65", "download.image_size"]),
        ({"filter.min_words": 1001}, ["filter.min_words (1001)", "no caption would be kept"]),
        ({"filter.threshold": 4.5}, ["filter.threshold is 4.5", "between -4 and 4"]),
        (
            {"filter.threshold": -1.5, "filter.score": "cosine"},
            ["filter.threshold is -1.5", "between -1 and 1"],
        ),
        (
            {"world.webs.demo.dead_links": 0.9, "world.webs.demo.truncated": 0.9},
            ["world.webs.demo", "'dead_links'"],
        ),
        # entries that differ, and would be one
        ({"methods.titles.coop": "CLIP"}, ["'clip' and 'coop'", "another title"]),
        ({"methods.titles.coop": "coop  + gram"}, ["'coop' and 'coop_gram'", "another title"]),
        ({"methods.titles.unigram": "coop", "methods.titles.coop": GONE}, ["another title"]),
        ({"study.methods.titles.vpt": "UNIGRAM"}, ["study.methods.titles", "another title"]),
        ({"methods.direct.Coop_gram": COOP}, ["methods: ", "capital letters"]),
        ({"benchmarks.Food": {"path": "x"}}, ["benchmarks: 'food' and 'Food'", "capital"]),
        ({"labelled.Shifted": None}, ["'labelled.Shifted'"]),
        ({"episodes.Shifted": {"support": "one_domain", "tasks": 1, "confusable": 0}}, ["capital"]),
        ({"report.pairs": [["coop", "coop_gram"], ["coop_gram", "coop"]]}, ["report.pairs"]),
        ({"study.pairs": [["vpt", "coop"], ["coop", "vpt"]]}, ["study.pairs", "way round"]),
        (
            {"protocols.broad.cross_dataset": ["broad_neon"]},
            ["protocols.broad names 'broad_neon'", "cross_domain and cross_dataset"],
        ),
    ],
)
def test_it_is_told_by_its_key(tmp_path, changes, words):
    with pytest.raises(InputError) as error:
        check(with_values(tmp_path / "params.yaml", changes))
    for word in words:
        assert word in str(error.value), error.value
    assert len(str(error.value)) < 2500


def test_two_stages_of_one_name(tmp_path):
    """`a-b` tuned on `c`, and `b` … on `c-a`: DVC would run one of them."""
    names = {"animals-x": {"base_to_new": [16], "all_classes": []}}
    path = with_values(
        tmp_path / "params.yaml",
        {
            "benchmarks.animals-x": {"path": "x", "shots": {"base": [16]}},
            "templates.animals-x": "a {}.",
            ("protocols", "animals-x"): names["animals-x"],
            "methods.direct.x-coop": COOP,
        },
    )
    with pytest.raises(InputError, match="are both the stage 'animals-x-coop'; rename one"):
        check(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"inner_lr": 1.2e-38 * 16, "methods.meta.unigram.inner_lr_factor": 1.0},
        {"topics.min_dist": 1},
        {"label.language": None},
        {"topics.fit_on": 16, "topics.map_on": 16},
        {"filter.min_side": 64},
        {"filter.threshold": -4},
        {"outer.keep": "best"},
        {"outer.keep": "average", "held_out_topics": 0},
        {"methods.direct.coop.depth": 4},
        {"context_tokens": 20},
        {"outer.weight_decay": 0.0},
        {"backbone.path": "elsewhere", "methods.direct.coop.depth": 99},
        {"label.stop_words": ["می‌شود"]},
    ],
)
def test_what_just_fits_is_taken(tmp_path, changes):
    check(with_values(tmp_path / "params.yaml", changes))


def test_what_is_not_here_is_a_remark(tmp_path):
    changes = {"label.edits": "none.yaml", "embed.model": "package:no_such_package/model"}
    remarks = list(lacking(check(with_values(tmp_path / "params.yaml", changes))))
    assert len(remarks) == 2
    assert "embed.model" in remarks[0] and "no_such_package is not installed" in remarks[0]
    assert "label.edits is 'none.yaml', but there is no such file" in remarks[1]


# --- files that are none ---

BOMB = "a: &a [1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{above}'] * 8)}]\n"
    for above, name in zip("abcdefgh", "bcdefghi", strict=True)
)
FILES = {
    "seed: 1\nseed: 2\n": "line 2: found duplicate key",
    "topics:\n\tmin_dist: 0\n": "line 2: found character",
    "- 1\n": "holds no `key: value` lines",
    "5\n": "holds no `key: value` lines",
    "": "holds no `key: value` lines",
    "seed: 1\n---\nseed: 2\n": "another document",
    "seed: *s\n": "undefined alias",
    "seed: 2020-99-99\n": "not readable as YAML",
    f"seed: {'9' * 5000}\n": "not readable as YAML",
    BOMB: "holds more than 200000 values",
    "a: &a [*a]\n": "holds more than 200000 values",
    b"label: {edits: caf\xe9}\n": "not readable as YAML",
}


@pytest.mark.parametrize("content", FILES, ids=range(len(FILES)))
def test_one_error_for_whoever_reads_it(tmp_path, monkeypatch, content):
    path = tmp_path / "params.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    monkeypatch.chdir(tmp_path)
    readers = (
        lambda: check(path),
        lambda: load_params(path, {"lr": ("inner_lr", Rate)}),
        lambda: remove(path, ["benchmarks.food"]),
        lambda: combinations(["inner_lr=1,2"]),
    )
    for read in readers:
        with pytest.raises(InputError, match=re.escape(FILES[content])) as error:
            read()
        assert len(str(error.value)) < 400
    assert path.read_bytes() == (content if isinstance(content, bytes) else content.encode())


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_yaml(tmp_path)


@pytest.mark.parametrize("section", [None, 5, [1], "topics", True])
def test_a_stage_by_hand_says_which_section_is_none(tmp_path, section):
    path = with_values(tmp_path / "params.yaml", {"topics": section})
    with pytest.raises(InputError, match="parameter 'topics'"):
        load_params(path, {"topics": ("topics", Topics)})
    with pytest.raises(InputError, match="'topics.min_dist' is missing"):
        load_params(path, {"min_dist": ("topics.min_dist", float)})
    done = run(
        *(sys.executable, "stages/topics.py", "--params", path, "--sentences", tmp_path),
        *("--out", tmp_path / "o.parquet", "--reduced", tmp_path / "r.parquet"),
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "topics: error: " in done.stderr and "parameter 'topics'" in done.stderr


@pytest.mark.parametrize("changes", [{"study": 1}, {"protocols": {"a": 2}}, {"templates": None}])
def test_an_entry_is_not_removed_from_what_is_no_table(tmp_path, changes):
    path = with_values(tmp_path / "params.yaml", changes)
    before = path.read_bytes()
    with pytest.raises(InputError, match=f"parameter '{next(iter(changes))}"):
        remove(path, ["benchmarks.food"])
    assert path.read_bytes() == before


# --- the environment ---


@pytest.mark.parametrize("asked, found", [("4,2", 4), (" 3 ", 3), ("08", 8), ("2, 1", 2)])
def test_openmp_s_list_of_levels_means_its_first(monkeypatch, asked, found):
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert workers("OMP_NUM_THREADS") == engine.threads() == found


@pytest.mark.parametrize("asked", ["many", "0", "-1", "1.5", "4,", "4,x", "٣", "9" * 30])
def test_a_number_of_workers_that_is_none(monkeypatch, asked):
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    for read in (engine.threads, lambda: workers("OMP_NUM_THREADS", 2)):
        with pytest.raises(InputError, match="environment variable OMP_NUM_THREADS is"):
            read()


def test_what_is_neither_repeatable_nor_not(monkeypatch):
    monkeypatch.setenv("DEVICE", "cpu")
    monkeypatch.setenv("DETERMINISTIC", "yes")
    with pytest.raises(InputError, match="DETERMINISTIC is 'yes'; it is 1, or 0"):
        device()


def test_the_download_says_that_threads_are_many(tmp_path):
    done = subprocess.run(
        [sys.executable, "stages/download.py", "--captions", "none", "--out", tmp_path / "o"],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "DOWNLOAD_THREADS": "many"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "environment variable DOWNLOAD_THREADS is 'many'" in done.stderr
    assert not (tmp_path / "o").exists()
