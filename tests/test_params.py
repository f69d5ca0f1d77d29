"""Wrong parameters: each gives one clear error that names file, key and remedy."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT

from pipeline.errors import InputError
from pipeline.gram.params import Rate
from pipeline.params import JSON_SCHEMA, load_params
from pipeline.schema import Params, check


def edited(tmp_path, old, new):
    text = (ROOT / "params.yaml").read_text()
    assert text.count(old) == 1, old
    path = tmp_path / "params.yaml"
    path.write_text(text.replace(old, new))
    return path


@pytest.mark.parametrize("profile", ["params.yaml", "profiles/paper.yaml"])
def test_the_committed_profiles_are_sound(profile):
    check(ROOT / profile)


def test_json_schema_is_up_to_date():
    """`python -m pipeline.schema --write` renews it."""
    assert json.loads(JSON_SCHEMA.read_text()) == json.loads(json.dumps(Params.model_json_schema()))


@pytest.mark.parametrize(
    "old, new, words",
    [
        (
            "\ninner_lr:",
            "\ninner_lrr:",
            ["unknown parameter 'inner_lrr'", "did you mean 'inner_lr'"],
        ),
        (
            "  min_cluster_size: 12",
            "  min_clster_size: 12",
            [
                "unknown parameter 'topics.min_clster_size'",
                "did you mean 'min_cluster_size'",
                "'topics.min_cluster_size' is missing",
            ],
        ),
        (
            "  min_cluster_size: 12",
            "  min_cluster_size: twelve",
            ["'topics.min_cluster_size'", "valid integer", "'twelve'"],
        ),
        (
            "  min_cluster_size: 12",
            "  min_cluster_size: 1",
            ["'topics.min_cluster_size'", "greater than or equal to 2"],
        ),
        (
            "  selection: leaf",
            "  selection: leef",
            ["'topics.selection'", "'eom' or 'leaf'", "'leef'"],
        ),
        ("inner_lr: 0.5", "inner_lr: '0.1'", ["'inner_lr'", "'0.1'"]),
        ("inner_lr: 0.5", "inner_lr: -0.1", ["'inner_lr'", "greater than 0"]),
        (
            "episodes: shifted, regulator: affine",
            "episodes: shiftd, regulator: affine",
            ["methods.meta.coop_gram.episodes", "'shiftd'", "shifted"],
        ),
        (
            'path: data/world/animals.zip, template: "a photo of a {}."',
            'path: data/world/animals.zip, template: "a photo"',
            ["benchmarks.animals.template", "{}"],
        ),
        (
            "animals: {path: data/world/animals.zip,",
            "animals: {layout: imagenet21k, path: data/world/animals.zip,",
            ["benchmarks.animals.layout", "'imagenet21k'"],
        ),
    ],
)
def test_one_clear_error(tmp_path, old, new, words):
    path = edited(tmp_path, old, new)
    with pytest.raises(InputError) as error:
        check(path)
    message = str(error.value)
    assert str(path) in message
    for word in words:
        assert word in message, message


def test_a_stage_refuses_an_unknown_key_by_itself(tmp_path):
    """Even a stage that does not read the mistyped key, and without a traceback."""
    path = edited(tmp_path, "\ninner_lr:", "\niner_lr: 0.1\ninner_lr:")
    done = subprocess.run(
        [sys.executable, "stages/captions.py", "--params", path, "--out", tmp_path / "c.parquet"],
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
    path = edited(tmp_path, "inner_lr: 0.5", f"inner_lr: {written}")
    assert load_params(path, {"lr": ("inner_lr", Rate)}).lr == value


def test_only_declared_keys_are_handed_out():
    params = load_params(ROOT / "params.yaml", {"lr": ("inner_lr", Rate)})
    with pytest.raises(AttributeError):
        params.seed
