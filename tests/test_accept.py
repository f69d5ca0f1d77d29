"""An edit that the digest of the code cannot know to be harmless is accepted, and nothing else."""

import sys

import pytest
from conftest import ROOT, run

from pipeline.accept import for_code_alone

STAGES = """
stages:
  code:
    cmd: mkdir -p data/code && cp code.py data/code/one.json && cp code.py data/code/two.json
    deps: [code.py]
    outs: [data/code]
  one:
    cmd: cp in.txt one.txt
    deps: [in.txt, data/code/one.json]
    outs: [one.txt]
  two:
    cmd: cp in.txt two.txt
    deps: [in.txt, data/code/two.json]
    params: [rate]
    outs: [two.txt]
"""


def accept(folder):
    return run(sys.executable, "-m", "pipeline.accept", cwd=folder, PYTHONPATH=ROOT).stdout


@pytest.mark.whole
def test_only_what_is_stale_for_its_code_is_accepted(tmp_path):
    run("git", "init", "--quiet", ".", cwd=tmp_path)
    run("dvc", "init", "--quiet", cwd=tmp_path)
    for name, text in (
        ("dvc.yaml", STAGES),
        ("code.py", "a = 1"),
        ("in.txt", "in"),
        ("params.yaml", "rate: 1"),
    ):
        (tmp_path / name).write_text(text)
    run("dvc", "repro", cwd=tmp_path)
    (tmp_path / "code.py").write_text("a = 2")
    (tmp_path / "params.yaml").write_text("rate: 2")
    said = accept(tmp_path)
    assert "1 stages count as made with the code of now: one" in said
    assert "stay so: two" in said
    done = run("dvc", "repro", cwd=tmp_path).stdout
    assert "Running stage 'two'" in done and "Running stage 'one'" not in done
    (tmp_path / "code.py").write_text("a = 3")
    assert "2 stages" in accept(tmp_path)
    assert "up to date" in run("dvc", "repro", cwd=tmp_path).stdout


def test_what_a_status_means():
    code = {"changed deps": {"data/code/one.json": "modified"}}
    status = {
        "code alone": [code],
        "an input too": [{"changed deps": {"data/code/one.json": "modified", "in": "modified"}}],
        "a parameter": [{"changed deps": {"params.yaml": {"rate": "modified"}}}],
        "no output": [code, {"changed outs": {"out": "deleted"}}],
        "its command": [code, "changed command"],
    }
    alone, more = for_code_alone(status)
    assert alone == ["code alone"] and len(more) == 4
