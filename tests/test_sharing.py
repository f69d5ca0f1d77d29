"""Experiments of earlier commits, from one clone to another by `make share` and `make fetch`."""

import pytest
from conftest import made_ready, run, small_team

STAGES = """
stages:
  report:
    cmd: mkdir -p data/metrics && cp params.yaml data/metrics/results.yaml
    params: [seed]
    outs: [data/metrics/results.yaml]
"""


@pytest.mark.whole
def test_experiments_of_earlier_commits_arrive(tmp_path):
    ours, theirs = small_team(tmp_path / "ours", STAGES), tmp_path / "theirs"
    run("dvc", "exp", "run", "--name", "early", "-S", "seed=2", cwd=ours)
    run("git", "checkout", "--quiet", ".", cwd=ours)
    for word in ("two", "three"):
        run("git", "commit", "--quiet", "--allow-empty", "-m", word, cwd=ours)
    run("git", "push", "--quiet", "-u", "origin", "main", cwd=ours)
    assert "early" in run("make", "share", cwd=ours).stdout
    run("git", "clone", "--quiet", tmp_path / "origin.git", theirs, cwd=tmp_path)
    run("make", "fetch", cwd=made_ready(theirs))
    assert "early" in run("make", "experiments", cwd=theirs).stdout
    run("dvc", "exp", "pull", "origin", "early", cwd=theirs)  # its outputs too
    run("dvc", "exp", "apply", "early", cwd=theirs)
    assert (theirs / "params.yaml").read_text() == "seed: 2\n"
