"""What removed methods, benchmarks and seeds leave behind: named, removed, and in nobody's lock."""

import os
import re
import shutil
import sys
from pathlib import Path

import pytest
from conftest import GONE, ROOT, made_ready, run, with_values

from pipeline.params import read_yaml
from pipeline.stage import warn_of_left_overs
from pipeline.tidy import left_over, patterns, remove
from pipeline.written import note_written

# --- what counts as left over ---


def made(top, *names):
    for name in names:
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)


def test_the_real_outputs_may_be_called_so():
    found = set(patterns(ROOT / "dvc.yaml", ROOT))
    assert {"data/starts/*", "data/tuned/*/*/*", "data/world/*.zip", "data/batches/*.json"} <= found
    assert not [name for name in found if "$" in name or "*" not in name]
    assert "data/study/runs/*/*" in set(patterns(ROOT / "study" / "stages.yaml", ROOT))


def test_what_is_left_is_what_nobody_uses(tmp_path):
    """An output, a part of one, what a stage reads, people's own folders and work in progress
    stay; so does all that lies elsewhere.
    """
    outside = tmp_path / "outside"
    top = tmp_path / "top"
    made(outside, "file")
    made(
        top,
        *("data/starts/coop/prompt", "data/starts/old/prompt", "data/starts/.new/prompt"),
        *("data/starts/a.tmp", "data/tuned/coop/zoo/1/a", "data/tuned/coop/zoo/2/a"),
        *("data/tuned/old/zoo/1/a", "data/world/mine.zip", "data/world/theirs.zip"),
        *("data/notes.txt", "elsewhere/old/a", "data/world/people/old.zip", "data/lists/old.json"),
    )
    (top / "data" / "scores").symlink_to(outside)
    (top / "data" / "starts" / "link").symlink_to(outside)
    names = ["data/starts/*", "data/tuned/*/*/*", "data/world/*.zip", "data/scores/*"]
    names += ["elsewhere/*", "../outside/*", "data/../../outside/*", "data/world/people/*"]
    outs = {top / "data/starts/coop", top / "data/tuned/coop/zoo/1", top / "data/lists/old.json"}
    deps = {top / "data/world/mine.zip", top / "data/world/people", top / "data/starts"}
    found = left_over(top, [*names, "data/lists/*"], outs, deps)
    assert [str(path.relative_to(top / "data")) for path in found] == [
        "starts/link",
        "starts/old",
        "tuned/coop/zoo/2",
        "tuned/old/zoo/1",
        "world/theirs.zip",
    ]
    for path in found:
        remove(path, top / "data")
    assert (outside / "file").read_text() and not (top / "data/tuned/old").exists()
    assert (top / "data/tuned/coop/zoo/1/a").exists() and (top / "data/starts/coop").exists()


def test_the_last_of_a_kind_takes_empty_folders_along_but_not_data(tmp_path):
    made(tmp_path, "data/tuned/old/zoo/1")
    remove(tmp_path / "data/tuned/old/zoo/1", tmp_path / "data")
    assert (tmp_path / "data").is_dir() and not any((tmp_path / "data").iterdir())


def test_a_stage_names_what_it_does_not_read(tmp_path, capsys):
    made(tmp_path, "coop/a", "old/a", ".partial/a", *(f"gone{n}/a" for n in range(7)))
    warn_of_left_overs(tmp_path, {"coop": "CoOp"})
    said = capsys.readouterr().err
    assert "gone0, gone1, gone2, gone3, gone4 and 3 more" in said and "make tidy" in said
    assert ".partial" not in said and "coop" not in said
    warn_of_left_overs(tmp_path / "nowhere", [])
    warn_of_left_overs(tmp_path / "coop", ["a"])
    assert not capsys.readouterr().err


def test_every_stage_that_reads_such_a_folder_names_what_is_left():
    """Folders of entries: what several stages fill, one entry each."""
    files = (ROOT / "dvc.yaml", ROOT / "study" / "stages.yaml")
    made = [Path(name) for file in files for name in patterns(file, ROOT)]
    readers = set()
    for file in files:
        for stage in read_yaml(file)["stages"].values():
            body = stage.get("do", stage)
            deps = {Path(re.sub(r"\$\{[^}]*\}", "*", dep)) for dep in body["deps"]}
            if any(deps & set(out.parents) for out in made):
                readers.add(body["cmd"].split()[1])
    assert {"stages/evaluate.py", "stages/report.py", "stages/compare.py"} <= readers
    for script in readers:
        assert "warn_of_left_overs(" in (ROOT / script).read_text(), script


# --- a team ---

STAGES = """
stages:
  start:
    foreach: ${methods.direct}
    do:
      cmd: mkdir -p data/starts/${key} && echo ${key} > data/starts/${key}/start
      params: ["methods.direct.${key}"]
      outs: ["data/starts/${key}"]
  benchmark:
    foreach: ${benchmarks}
    do:
      cmd: mkdir -p data/benchmarks/${key} && echo ${key} > data/benchmarks/${key}/samples
      params: ["benchmarks.${key}"]
      outs: ["data/benchmarks/${key}"]
  tune:
    matrix:
      method: ${methods.direct}
      seed: ${few_shot.seeds}
    cmd: >-
      mkdir -p data/tuned/${item.method}/${item.seed} &&
      echo ${item.method} > data/tuned/${item.method}/${item.seed}/tuned
    deps: ["data/starts/${item.method}"]
    outs: ["data/tuned/${item.method}/${item.seed}"]
  evaluate:
    foreach: ${methods.direct}
    do:
      cmd: mkdir -p data/scores/${key} && echo ${key} > data/scores/${key}/scores
      deps: ["data/tuned/${key}", data/benchmarks]
      params: [protocols, few_shot.seeds]
      outs: ["data/scores/${key}"]
  report:
    cmd: echo report > data/report
    deps: [data/starts, data/benchmarks, data/scores]
    params: [methods, protocols, few_shot.seeds]
    outs: [data/report]
"""
WITHOUT = {
    "method": {"methods.direct.cocoop": GONE},
    "benchmark": {
        "benchmarks.food": GONE,
        "templates.food": GONE,
        "protocols.broad.cross_dataset": ["animals"],
        "study.benchmarks": ["animals"],
    },
    "seed": {"few_shot.seeds": [1]},
}
LEFT = {"method": "data/starts/cocoop", "benchmark": "data/benchmarks/food"}
LEFT["seed"] = "data/tuned/coop/2"


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """The real parameters and Makefile over stages that take no time, run and shared once."""
    folder = tmp_path_factory.mktemp("project") / "ours"
    folder.mkdir()
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    (folder / ".gitignore").write_text("/data/\n/.venv/\n")
    (folder / ".dvcignore").touch()
    (folder / "dvc.yaml").write_text(STAGES)
    changes = {"few_shot.seeds": [1, 2], "methods.direct.cocoop": {"prompt": "cocoop"}}
    with_values(folder / "params.yaml", changes)
    for name in ("topic_edits.yaml",):
        shutil.copy(ROOT / name, folder)
    run("git", "init", "--quiet", "-b", "main", ".", cwd=folder)
    run("dvc", "init", "--quiet", cwd=folder)
    run("dvc", "remote", "add", "-d", "team", folder.parent / "share", cwd=folder)
    made_ready(folder)
    run("make", "repro", cwd=folder, PYTHONPATH=ROOT)
    save(folder, "all")
    return folder


def save(folder, message):
    run("git", "add", "-A", cwd=folder)
    run("git", "commit", "--quiet", "-m", message, cwd=folder)
    run("dvc", "push", "--quiet", cwd=folder)


@pytest.fixture
def ours(project, tmp_path):
    """A copy whose entries a test may remove."""
    shutil.copytree(project, tmp_path / "ours", symlinks=True)
    return tmp_path / "ours"


def stale_for_a_colleague(folder):
    """What a clone would run, and what DVC says once all is fetched."""
    clone = folder.parent / "clone"
    shutil.rmtree(clone, ignore_errors=True)
    run("git", "clone", "--quiet", folder, clone, cwd=folder.parent)
    dry = run("dvc", "repro", "--pull", "--allow-missing", "--dry", cwd=clone).stdout
    run("dvc", "pull", "--quiet", cwd=clone)
    status = run("dvc", "status", cwd=clone).stdout
    return [line for line in dry.splitlines() if line.startswith("Running")], status


@pytest.mark.whole
@pytest.mark.parametrize("what", ["method", "benchmark"])
def test_without_a_removed_entry_a_clone_is_as_the_lock_says(ours, what):
    with_values(ours / "params.yaml", WITHOUT[what], ours / "params.yaml")
    checked = run("make", "check", cwd=ours, PYTHONPATH=ROOT)
    assert LEFT[what] in checked.stderr and "make tidy" in checked.stderr
    assert (ours / LEFT[what]).exists()
    done = run("make", "repro", cwd=ours, PYTHONPATH=ROOT)
    assert f"removed {LEFT[what]} (DVC's cache keeps it)" in done.stdout
    assert not (ours / LEFT[what]).exists()
    known = run("dvc", "stage", "list", "--name-only", cwd=ours).stdout.split()
    assert set(read_yaml(ours / "dvc.lock")["stages"]) == set(known)
    save(ours, f"without a {what}")
    ran, status = stale_for_a_colleague(ours)
    assert not ran and "up to date" in status
    # and back: nothing was lost
    run("git", "checkout", "--quiet", "HEAD~1", "--", "params.yaml", "dvc.lock", cwd=ours)
    back = run("dvc", "repro", cwd=ours).stdout
    assert "Running stage" not in back and (ours / LEFT[what]).exists()


@pytest.mark.whole
def test_dvc_alone_would_have_left_it_in_the_lock(ours):
    """What the step before `dvc repro` is for."""
    with_values(ours / "params.yaml", WITHOUT["seed"], ours / "params.yaml")
    run("dvc", "repro", cwd=ours)
    save(ours, "not tidied")
    _, status = stale_for_a_colleague(ours)
    assert "data/tuned/coop" in status  # before anything is there, DVC cannot know
    run("make", "tidy", cwd=ours, PYTHONPATH=ROOT)
    run("dvc", "repro", cwd=ours)
    save(ours, "tidied")
    ran, status = stale_for_a_colleague(ours)
    assert not ran and "up to date" in status


@pytest.mark.whole
def test_what_no_stage_wrote_stays(ours):
    """A person's folder, an edited output and a person's link, by whatever command."""
    made(ours, "data/starts/mine/start")
    (ours / "data/starts/linked").symlink_to(ROOT / "docs")
    with_values(ours / "params.yaml", WITHOUT["method"], ours / "params.yaml")
    kept = ours / "data/starts/cocoop/start"
    os.chmod(kept, 0o644)
    kept.unlink()  # a link into the cache
    kept.write_text("other bytes than DVC knows")
    done = run("make", "repro", cwd=ours, PYTHONPATH=ROOT)
    for name in ("mine", "cocoop"):
        assert f"data/starts/{name} stays: DVC's cache does not have it" in done.stderr
    assert kept.exists() and not (ours / "data/scores/cocoop").exists()
    made(ours, "data/starts/stopped/start")
    note_written(ours / "data/starts/stopped")  # as a stage that DVC did not save notes it
    done = run("make", "tidy", cwd=ours, PYTHONPATH=ROOT)
    assert done.stdout.count("removed data/starts/") == 1
    assert not (ours / "data/starts/stopped").exists()
    for name in ("mine", "cocoop", "linked"):
        assert f"`rm -r data/starts/{name}` removes it" in done.stderr
        assert (ours / "data/starts" / name).exists()
    assert (ROOT / "docs" / "team.md").exists()


@pytest.mark.whole
def test_looking_does_not_wait_for_a_dvc_that_works(tmp_path):
    """While a stage runs, `make check` can be asked; what removes something waits, and says so."""
    from dvc.repo import Repo

    run("git", "init", "--quiet", ".", cwd=tmp_path)
    run("dvc", "init", "--quiet", cwd=tmp_path)
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    ask = [sys.executable, "-m", "pipeline.tidy"]
    with Repo(str(tmp_path)).lock:
        run(*ask, "--dry", cwd=tmp_path, PYTHONPATH=ROOT)
        busy = run(*ask, cwd=tmp_path, check=False, PYTHONPATH=ROOT)
    assert busy.returncode == 1 and "tidy: error: Unable to acquire lock" in busy.stderr


def test_dvc_s_complaints_are_one_line(tmp_path):
    done = run(sys.executable, "-m", "pipeline.tidy", cwd=tmp_path, check=False, PYTHONPATH=ROOT)
    assert done.returncode == 1 and done.stderr.startswith("tidy: error:")
    assert "Traceback" not in done.stderr
