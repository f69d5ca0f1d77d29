"""The whole of params.yaml is checked by the stage `params` before any other stage works."""

import json
import re
import subprocess
import sys

import pytest
from conftest import ROOT, clone, run, with_values
from test_pipeline_file import MAIN, STUDY, body

from pipeline.stale import depends, readers

RUNNING = re.compile(r"Running stage '([^']+)'")


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A clone without data, whose lock says what `params` and `code` make of the tree as it is."""
    folder = clone(tmp_path_factory.mktemp("first") / "clone")
    run("dvc", "repro", "code", cwd=folder)
    run("git", "commit", "--quiet", "--allow-empty", "-am", "lock", cwd=folder)
    return folder


def fresh(folder):
    """What the test before left is undone; where git's index takes a file for unchanged, too."""
    for name in ("params.yaml", "dvc.lock"):
        (folder / name).write_text(run("git", "show", f"HEAD:{name}", cwd=folder).stdout)
    return folder


@pytest.mark.parametrize(
    "change, key",
    [
        ("inner_lr=-1", "inner_lr"),
        ("few_shot.seeds=[1,1]", "few_shot.seeds"),
        ("evaluate.curve_epochs=[0]", "evaluate.curve_epochs"),
        ("report.resamples=0", "report.resamples"),
        ("topics=null", "topics"),
        ("study.shots=0", "study.shots"),
        ("world.webs.demo.size=0", "world.webs.demo.size"),
    ],
)
def test_a_wrong_value_is_told_before_any_stage_works(repository, change, key):
    done = run("dvc", "exp", "run", "-S", change, cwd=fresh(repository), check=False)
    assert done.returncode and RUNNING.findall(done.stdout) == ["params"], done.stdout
    assert re.search(rf"params: error: params\.yaml: parameter '{key}[.\d]*'", done.stderr)
    assert "Traceback" not in done.stderr


def stale_of(folder):
    """The stages that `dvc status` calls stale for more than outputs that are not there."""
    found = json.loads(run("dvc", "status", "--json", cwd=folder).stdout)
    parts = {
        name: json.dumps([c for c in changes if "changed outs" not in c])
        for name, changes in found.items()
    }
    return {name: part for name, part in parts.items() if part != "[]"}


@pytest.mark.parametrize("key, value", [("inner_lr", 0.25), ("topics.min_samples", 4)])
def test_a_sound_value_makes_stale_what_reads_it_and_no_more(repository, key, value):
    before = stale_of(fresh(repository))
    with_values(repository / "params.yaml", {key: value}, source=repository / "params.yaml")
    after = stale_of(repository)
    changed = {name for name in after if after[name] != before.get(name)}
    reads = {n for n, keys in readers().items() if any(depends(key, on) for on in keys)}
    assert {name.partition("@")[0] for name in changed} - {"params"} == {
        name for name in reads if "/" not in name
    }
    assert "params" in changed
    done = run("dvc", "repro", "code", cwd=repository)
    assert RUNNING.findall(done.stdout) == ["params"]  # `code` is as it was
    assert "params" not in stale_of(repository)


def test_every_stage_waits_for_the_check():
    """Whatever begins a branch depends on a digest of its code, and these wait for the check."""
    assert "data/params.json" in MAIN["params"]["outs"]
    assert "params.yaml" in MAIN["params"]["deps"]
    assert "data/params.json" in MAIN["code"]["deps"]
    for table in (MAIN, STUDY):
        for name in table:
            if name not in ("params", "code"):
                told = body(name if table is MAIN else f"study/{name}")["deps"]
                assert any(dep.startswith("data/code/") for dep in told), name


LIGHT = """
import runpy, sys
sys.argv = ["stages/params.py", "--params", sys.argv[1], "--out", sys.argv[2]]
sys.path.insert(0, "stages")
runpy.run_path("stages/params.py", run_name="__main__")
heavy = {"torch", "pandas", "polars", "sklearn", "open_clip", "mlflow", "PIL"} & set(sys.modules)
sys.exit(f"loaded {sorted(heavy)}" if heavy else 0)
"""


def test_the_check_is_light_and_writes_the_same_for_every_sound_file(tmp_path):
    written = set()
    for number, changes in enumerate(({}, {"inner_lr": 0.1, "evaluate.curve_epochs": [2, 50]})):
        params = with_values(tmp_path / "params.yaml", changes)
        out = tmp_path / f"{number}.json"
        done = subprocess.run(
            [sys.executable, "-c", LIGHT, params, out], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        written.add(out.read_bytes())
    assert len(written) == 1
    assert "warning: " in done.stderr and "evaluate.curve_epochs has 50" in done.stderr
