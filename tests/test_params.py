"""Wrong parameters: each gives one clear error that names file, key and remedy."""

import json
import subprocess
import sys
from typing import get_type_hints

import pytest
from conftest import GONE, ROOT, with_values
from ruamel.yaml import YAML

from pipeline.errors import InputError
from pipeline.gram.params import Learning, Rate
from pipeline.params import JSON_SCHEMA, Seed, load_params
from pipeline.schema import Params, check


def edited(tmp_path, changes):
    return with_values(tmp_path / "params.yaml", changes)


@pytest.mark.parametrize("profile", ["params.yaml", "profiles/paper.yaml", "profiles/own.yaml"])
def test_the_committed_profiles_are_sound(profile):
    check(ROOT / profile)


def test_json_schema_is_up_to_date():
    """`python -m pipeline.schema --write` renews it."""
    assert json.loads(JSON_SCHEMA.read_text()) == json.loads(json.dumps(Params.model_json_schema()))


@pytest.mark.parametrize(
    "changes, words",
    [
        (
            {"inner_lrr": 0.5},
            ["unknown parameter 'inner_lrr'", "did you mean 'inner_lr'"],
        ),
        (
            {"topics.min_clster_size": 12, "topics.min_cluster_size": GONE},
            [
                "unknown parameter 'topics.min_clster_size'",
                "did you mean 'min_cluster_size'",
                "'topics.min_cluster_size' is missing",
            ],
        ),
        (
            {"topics.min_cluster_size": "twelve"},
            ["'topics.min_cluster_size'", "valid integer", "'twelve'"],
        ),
        (
            {"topics.min_cluster_size": 1},
            ["'topics.min_cluster_size'", "greater than or equal to 2"],
        ),
        (
            {"topics.selection": "leef"},
            ["'topics.selection'", "'eom', 'leaf' or 'plscan'", "'leef'"],
        ),
        ({"inner_lr": "0.1"}, ["'inner_lr'", "'0.1'"]),
        ({"inner_lr": -0.1}, ["'inner_lr'", "greater than 0"]),
        (
            {"methods.meta.coop_gram.episodes": "shiftd"},
            ["methods.meta.coop_gram.episodes", "'shiftd'", "shifted"],
        ),
        ({"templates.animals": "a photo"}, ["templates.animals", "{}"]),
        ({"templates.animals": GONE}, ["templates has no 'animals'", "add its"]),
        ({"templates.stars": "a {}"}, ["templates names 'stars'", "no entry of 'benchmarks'"]),
        ({"methods.direct.coop.title": "C"}, ["unknown parameter 'methods.direct.coop.title'"]),
        ({"protocols.animals.all_classes": GONE}, ["'protocols.animals.all_classes' is missing"]),
        (
            {"benchmarks.animals.layout": "imagenet21k"},
            ["benchmarks.animals.layout", "'imagenet21k'"],
        ),
    ],
)
def test_one_clear_error(tmp_path, changes, words):
    path = edited(tmp_path, changes)
    with pytest.raises(InputError) as error:
        check(path)
    message = str(error.value)
    assert str(path) in message
    for word in words:
        assert word in message, message


def test_a_stage_refuses_an_unknown_key_by_itself(tmp_path):
    """Even a stage that does not read the mistyped key, and without a traceback."""
    path = edited(tmp_path, {"iner_lr": 0.1})
    done = subprocess.run(
        [sys.executable, "stages/captions.py", "--params", path, "--out", tmp_path / "c.parquet"],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "unknown parameter 'iner_lr'; did you mean 'inner_lr'?" in done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "c.parquet").exists()


def test_missing_and_unreadable_files(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        check(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("seed: [1")
    with pytest.raises(InputError, match="not readable as YAML"):
        check(tmp_path / "params.yaml")


@pytest.mark.parametrize(
    "written, value", [("1e-05", 1e-5), ("1e-5", 1e-5), ("2", 2.0), ("0.01", 0.01)]
)
def test_numbers_as_dvc_writes_them(tmp_path, written, value):
    """DVC turns -S inner_lr=1e-5 into `1e-05`, which a YAML 1.1 reader takes for a string."""
    text = (ROOT / "params.yaml").read_text()
    assert text.count("inner_lr: 0.5") == 1
    path = tmp_path / "params.yaml"
    path.write_text(text.replace("inner_lr: 0.5", f"inner_lr: {written}"))
    assert load_params(path, {"lr": ("inner_lr", Rate)}).lr == value


def test_only_declared_keys_are_handed_out():
    params = load_params(ROOT / "params.yaml", {"lr": ("inner_lr", Rate)})
    with pytest.raises(AttributeError):
        _ = params.seed


def named(table, name):
    """An entry of params.yaml under another name."""
    entry = YAML(typ="safe").load(ROOT / "params.yaml")
    for part in table:
        entry = entry[part]
    return {(*table, name): next(iter(entry.values()))}


@pytest.mark.parametrize(
    "changes, words",
    [
        # a value given twice would count twice
        ({"few_shot.draws": [1, 2, 1]}, ["few_shot.draws", "1 stands there twice"]),
        ({"few_shot.seeds": [1, 1]}, ["few_shot.seeds", "1 stands there twice"]),
        ({"benchmarks.broad.shots.all": [16, 16]}, ["benchmarks.broad.shots.all", "16 stands"]),
        ({"protocols.animals.base_to_new": [16, 16]}, ["16 stands"]),
        ({"protocols.broad.cross_domain": ["broad_neon"] * 2}, ["'broad_neon' stands"]),
        ({"evaluate.curve_epochs": [2, 2]}, ["evaluate.curve_epochs", "2 stands"]),
        ({"study.seeds": [1, 2, 2]}, ["study.seeds", "2 stands"]),
        ({"benchmarks.broad.domains": ["flat", "flat"]}, ["broad.domains", "'flat' stands"]),
        ({"report.pairs": [["coop", "coop"]]}, ["report.pairs.0", "'coop' stands"]),
        ({"source.columns": ["url", "url"]}, ["source.columns", "'url' stands"]),
        # seeds that no generator takes
        ({"few_shot.draws": [1, -2]}, ["few_shot.draws.1", "greater than or equal"]),
        ({"seed": -1}, ["'seed'", "greater than or equal to 0"]),
        ({"study.seeds": [1, -5]}, ["study.seeds.1", "greater than or"]),
        # numbers that are none
        ({"tuning.lr": float("inf")}, ["'tuning.lr'", "finite number"]),
        ({"inner_lr": float("nan")}, ["'inner_lr'", "finite number"]),
        ({"filter.threshold": float("nan")}, ["'filter.threshold'", "finite number"]),
        # templates that no class name can be put into
        ({"templates.food": "a {kind} of {}."}, ["templates.food", "no other brace"]),
        ({"templates.food": "a photo of {}}."}, ["templates.food", "no other brace"]),
        ({"methods.zero_shot.clip.templates": ["{0} {}"]}, ["no other brace"]),
        # names that go into commands, files and MLflow
        (named(("methods", "direct"), "coop v2"), ["'methods.direct.coop v2'", "letters"]),
        (named(("methods", "direct"), "own+"), ["'methods.direct.own+'", "letters"]),
        (named(("methods", "direct"), "-x"), ["'methods.direct.-x'", "letters"]),
        (named(("benchmarks",), "../food"), ["'benchmarks.../food'", "letters"]),
        (named(("episodes",), "sh/ift"), ["'episodes.sh/ift'", "letters"]),
        # what would end hours later
        (
            {"protocols.broad.cross_dataset": ["broad"]},
            ["protocols.broad.cross_dataset names 'broad' itself"],
        ),
        (
            {"context_tokens": 3},
            ["methods.meta.unigram", "even number", "study.methods.direct.joint"],
        ),
        (
            {"methods.direct.coop": {"prompt": "cocoop", "depth": 2}},
            ["methods.direct.coop", "'depth'"],
        ),
        ({"domains.per_topic": 1}, ["domains.per_topic is 1", "two domains"]),
        (
            {"study.labelled.supervised.per_class": 9},
            ["study.labelled.supervised.per_class is 9", "4 + 6"],
        ),
        ({"filter.min_characters": 2000}, ["filter", "no caption would be kept"]),
        ({"regulator.bias": 0.0}, ["regulator", "'bias' and 'weight_std' are both 0"]),
        (
            {"world.webs.demo.strength": [0.8, 0.1]},
            ["world.webs.demo.strength", "the weakest comes first"],
        ),
        (named(("benchmarks",), "average"), ["benchmarks.average", "give it another one"]),
        # a key that is not known inside something that may be null
        (
            {"source.obtain": {"urll": "http://a", "sha256": "b"}},
            ["'source.obtain.urll'", "did you mean 'url'"],
        ),
    ],
)
def test_what_can_be_known_before_hours_are_spent(tmp_path, changes, words):
    with pytest.raises(InputError) as error:
        check(edited(tmp_path, changes))
    for word in words:
        assert word in str(error.value), error.value
    assert len(str(error.value)) < 1500  # never the whole file behind it


def test_all_that_does_not_fit_is_said_at_once(tmp_path):
    """Whoever removes a benchmark reads every place that names it."""
    with pytest.raises(InputError) as error:
        check(edited(tmp_path, {"benchmarks.things": GONE}))
    message = str(error.value)
    for place in ("protocols.things.base_to_new", "protocols.broad.cross_dataset", "study.bench"):
        assert f"{place}" in message, message
    assert len(message) < 1500


def test_a_pair_of_a_method_that_was_removed_is_left_out_with_a_word(tmp_path):
    path = edited(tmp_path, {"methods.direct.coop": GONE})
    remark = "report.pairs compares coop_gram with coop, but there is no method 'coop'"
    assert [r.startswith(remark) for r in check(path).remarks()] == [False, True]
    assert check(path).remarks()[0].startswith("methods.titles names 'coop'")
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.schema", path], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0 and remark in done.stderr


def test_a_stage_refuses_a_seed_below_zero_by_itself(tmp_path):
    """As `dvc exp run -S seed=-1` gives it, which no check of the whole file comes before."""
    path = edited(tmp_path, {"seed": -1})
    with pytest.raises(InputError, match="'seed': Input should be greater than or equal to 0"):
        load_params(path, {"seed": ("seed", Seed)})


def test_epochs_that_are_never_reached_are_left_out_with_a_word(tmp_path):
    path = edited(tmp_path, {"evaluate.curve_epochs": [2, 50]})
    assert check(path).remarks() == [
        "evaluate.curve_epochs has 50, but 'few_shot.epochs' is 10; it is left out"
    ]


def test_learning_asks_for_the_same_numbers_as_the_schema():
    """Stages read `Learning`'s fields by themselves; what is checked in whole must be the same."""
    whole = get_type_hints(Params, include_extras=True)
    for name, kind in get_type_hints(Learning, include_extras=True).items():
        assert whole[name] == kind, name
