"""What each key of params.yaml makes stale: the page, and what DVC itself says."""

import shutil
import subprocess

import pytest
from conftest import ROOT
from ruamel.yaml import YAML

from pipeline.gram.params import UNTRACKED
from pipeline.stale import depends, general, keys_of, page, readers, stale

PARAMS = YAML(typ="safe").load(ROOT / "params.yaml")


def test_the_page_is_up_to_date():
    """`python -m pipeline.stale > docs/stale.md` renews it."""
    assert (ROOT / "docs" / "stale.md").read_text() == page()


def test_every_key_makes_stale_what_the_page_says():
    """All keys, through DVC's own reading of dvc.yaml."""
    from dvc.repo import Repo

    of = {
        stage.addressing: [key for dep in stage.params for key in dep.params]
        for stage in Repo(str(ROOT)).index.stages
    }
    groups = {name.partition("@")[0] for name in of}  # tables without entries have no stage
    told = {name: keys for name, keys in readers().items() if name in groups}
    found = {}
    for key in keys_of(PARAMS):
        stages = [name for name, deps in of.items() if any(depends(key, on) for on in deps)]
        found.setdefault(general(key), set()).update(s.partition("@")[0] for s in stages)
    assert found == {key: set(stale(key, told)) for key in found} and len(found) > 150


@pytest.mark.parametrize(
    "key, stages",
    [
        ("methods.titles.*", {"report", "publish"}),
        ("source.bad_rows", {"captions"}),
        ("download.min_success", {"index"}),
        ("protocols.*.cross_domain", {"zero_shot", "evaluate", "evaluate_meta", "report"}),
        ("topics.map_on", {"map"}),
        ("topics.repeats", {"stability"}),
        ("outer.measure_every", set()),
        ("outer.checkpoint_every", set()),
    ],
)
def test_nothing_is_stale_without_need(key, stages):
    assert set(stale(key, {n: k for n, k in readers().items() if "/" not in n})) == stages
    assert stages or key in UNTRACKED


@pytest.mark.parametrize("profile", ["params.yaml", "profiles/paper.yaml", "profiles/own.yaml"])
def test_a_value_set_by_dvc_changes_one_line(tmp_path, profile):
    """The files stand in the form that `dvc exp run -S` writes."""
    from dvc.utils.hydra import apply_overrides

    path = tmp_path / "params.yaml"
    for change in ("inner_lr=0.25", "topics.min_cluster_size=21", "episodes.shifted.tasks=77"):
        before = (ROOT / profile).read_text()
        path.write_text(before)
        apply_overrides(path, [change])
        after = path.read_text().splitlines()
        assert len(after) == len(before.splitlines())
        assert sum(a != b for a, b in zip(before.splitlines(), after, strict=True)) == 1, change


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A project with one stage, and the real parameters."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    (tmp_path / "dvc.yaml").write_text(
        "stages: {one: {cmd: cp params.yaml out, params: [inner_lr], outs: [out]}}\n"
    )
    monkeypatch.chdir(tmp_path)
    for command in (
        "git init --quiet",
        "dvc init --quiet",
        "git add -A",
        "git -c user.name=t -c user.email=t@example.org commit --quiet -m one",
    ):
        subprocess.run(command.split(), check=True)
    return tmp_path


def test_a_name_is_taken_once_and_one_combination_is_a_sweep(repository):
    from pipeline.errors import InputError
    from pipeline.sweep import known_names, queue

    assert queue("one", ["inner_lr=0.25"], []) == 1
    assert known_names() == {"one-1"}  # what `sweep table one` looks for
    with pytest.raises(InputError, match="there is one-1 already"):
        queue("one", ["inner_lr=0.3,0.4"], [])
    (repository / "stages").mkdir()
    (repository / "stages" / "mine.py").write_text("")
    with pytest.raises(InputError, match=r"stages/mine.py: not in git"):
        queue("two", ["inner_lr=0.3"], [])


def test_the_table_of_many_methods_fits_a_terminal():
    import polars as pl

    from pipeline.sweep import by_method

    names = [f"method_{n}" for n in range(7)]
    figures = ("base", "new", "H", "cross_domain", "cross_dataset")
    row = {"inner_lr": "0.25", "runs": 3}
    for name in names:
        for figure in figures:
            row |= {f"{name}.{figure}": 61.25, f"{name}.{figure}_sd": 1.5}
    columns, rows = by_method(["inner_lr"], pl.DataFrame([row]))
    assert columns == ["method", "inner_lr", "runs", *figures]
    assert [r[0] for r in rows] == names and rows[0][3:] == ["61.25 ± 1.50"] * 5
    assert sum(map(len, rows[0])) + 3 * len(columns) <= 100
