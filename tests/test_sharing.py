"""Experiments of earlier commits, from one clone to another by `make share` and `make fetch`."""

import shutil

import pytest
from conftest import ROOT, run

STAGES = """
stages:
  report:
    cmd: mkdir -p data/metrics && cp params.yaml data/metrics/results.yaml
    params: [seed]
    outs: [data/metrics/results.yaml]
"""


def made_ready(folder):
    (folder / ".venv").mkdir()
    (folder / ".venv" / ".ready").touch()
    return folder


@pytest.mark.whole
def test_experiments_of_earlier_commits_arrive(tmp_path):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.mkdir()
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, ours)
    (ours / "dvc.yaml").write_text(STAGES)
    (ours / "params.yaml").write_text("seed: 1\n")
    (ours / ".gitignore").write_text("/data/\n/.venv/\n")
    run("git", "init", "--quiet", "-b", "main", ".", cwd=ours)
    run("git", "init", "--quiet", "--bare", "-b", "main", tmp_path / "origin.git", cwd=ours)
    run("git", "remote", "add", "origin", tmp_path / "origin.git", cwd=ours)
    run("dvc", "init", "--quiet", cwd=ours)
    run("dvc", "remote", "add", "-d", "team", tmp_path / "share", cwd=ours)
    run("dvc", "repro", "--quiet", cwd=ours)
    run("git", "add", "-A", cwd=ours)
    run("git", "commit", "--quiet", "-m", "one", cwd=ours)
    run("dvc", "exp", "run", "--name", "early", "-S", "seed=2", cwd=ours)
    run("git", "checkout", "--quiet", ".", cwd=ours)
    for word in ("two", "three"):
        run("git", "commit", "--quiet", "--allow-empty", "-m", word, cwd=ours)
    run("git", "push", "--quiet", "-u", "origin", "main", cwd=ours)
    assert "early" in run("make", "share", cwd=made_ready(ours)).stdout
    run("git", "clone", "--quiet", tmp_path / "origin.git", theirs, cwd=tmp_path)
    run("make", "fetch", cwd=made_ready(theirs))
    assert "early" in run("make", "experiments", cwd=theirs).stdout
    run("dvc", "exp", "pull", "origin", "early", cwd=theirs)  # its outputs too
    run("dvc", "exp", "apply", "early", cwd=theirs)
    assert (theirs / "params.yaml").read_text() == "seed: 2\n"
