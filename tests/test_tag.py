"""Versions for the artifacts of dvc.yaml, as `dvc artifacts get` looks for them."""

import pytest
from conftest import ROOT, run, small_team

from pipeline.tag import made_here

DVC = """
stages:
  one: {cmd: echo one > one.txt, outs: [one.txt]}
artifacts:
  first-one: {path: one.txt, type: dataset, desc: "what is made, as it is"}
  removed: {path: data/gone, type: model}
"""


@pytest.fixture
def project(tmp_path):
    folder = small_team(tmp_path / "ours", DVC)
    run("dvc", "push", "--quiet", cwd=folder)
    run("git", "push", "--quiet", "-u", "origin", "main", cwd=folder)
    return folder


def make_tag(folder, version, check=True):
    return run("make", "tag", f"VERSION={version}", cwd=folder, check=check, PYTHONPATH=ROOT)


@pytest.mark.whole
def test_what_is_tagged_is_taken_by_name_and_version(project):
    said = make_tag(project, "v1.0.0").stderr
    assert "removed: no stage in dvc.lock makes them" in said
    origin = project.parent / "origin.git"
    assert run("git", "tag", cwd=origin).stdout.split() == ["first-one@v1.0.0"]
    make_tag(project, "v1.0.0")  # once more changes nothing
    run("git", "commit", "--quiet", "--allow-empty", "-m", "two", cwd=project)
    again = make_tag(project, "v1.0.0", check=False)
    assert again.returncode and "first-one@v1.0.0: another commit" in again.stderr
    (project / "params.yaml").write_text("seed: 2\n")
    dirty = make_tag(project, "v1.1.0", check=False)
    assert dirty.returncode and "params.yaml: not committed" in dirty.stderr
    for wrong in ("1.0", "", "v1"):
        done = make_tag(project, wrong, check=False)
        assert done.returncode and "is no version; for example v1.0.0" in done.stderr
    assert run("git", "tag", cwd=origin).stdout.split() == ["first-one@v1.0.0"]
    elsewhere = project.parent / "elsewhere"
    elsewhere.mkdir()
    run("dvc", "artifacts", "get", origin, "first-one", "--rev", "v1.0.0", cwd=elsewhere)
    assert (elsewhere / "one.txt").read_text() == "one\n"


def test_the_real_artifacts_have_names_that_a_tag_may_have():
    from gto.constants import assert_name_is_valid

    from pipeline.params import read_yaml

    artifacts = read_yaml(ROOT / "dvc.yaml")["artifacts"]
    for name, artifact in artifacts.items():
        assert_name_is_valid(name)
        assert artifact["desc"]
    there, missing = made_here(artifacts, read_yaml(ROOT / "dvc.lock"))
    assert "clusters" in there and not missing
