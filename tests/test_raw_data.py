"""People's own data in data/raw/: `dvc add` takes it, queued experiments and colleagues have it."""

import shutil

import pytest
from conftest import ROOT, run

STAGES = """
stages:
  count:
    cmd: cat '${source.path}/captions.tsv' '${backbone.path}' '${label.edits}' > data/out
    deps: ["${source.path}", "${backbone.path}", "${label.edits}"]
    params: [seed]
    outs: [data/out]
"""
RAW = ("data/raw/mine", "data/raw/benchmarks/Städte für alle.zip")


@pytest.fixture
def project(tmp_path):
    """The real ignore files, data in the documented place, one stage that reads it."""
    folder = tmp_path / "ours"
    folder.mkdir()
    for name in (".gitignore", ".dvcignore"):
        shutil.copy(ROOT / name, folder)
    run("git", "init", "--quiet", "-b", "main", ".", cwd=folder)
    run("dvc", "init", "--quiet", cwd=folder)
    run("dvc", "remote", "add", "-d", "team", tmp_path / "share", cwd=folder)
    (folder / "dvc.yaml").write_text(STAGES)
    (folder / "params.yaml").write_text(
        f"seed: 1\nsource: {{path: {RAW[0]}}}\nbackbone: {{path: {RAW[1]}}}\n"
        f"label: {{edits: {tmp_path}/elsewhere}}\n"
    )
    (tmp_path / "elsewhere").write_text("of a path that is the same for all")
    (folder / RAW[0]).mkdir(parents=True)
    (folder / RAW[0] / "captions.tsv").write_text("a lion\thttp://127.0.0.1/1.jpg\n")
    (folder / RAW[1]).parent.mkdir(parents=True)
    (folder / RAW[1]).write_text("weights")
    return folder


def save(folder, message):
    run("git", "add", "-A", cwd=folder)
    run("git", "commit", "--quiet", "-m", message, cwd=folder)


def test_git_has_the_notes_of_dvc_and_no_byte_of_the_data(project):
    before = run("git", "add", "-A", "--dry-run", cwd=project).stdout
    assert "data/" not in before
    for folder in ("data/raw/mine/", "data/raw/benchmarks/imagenet/", "data/shards/"):
        run("git", "check-ignore", folder, cwd=project)  # so DVC does not look into it for notes
    run("dvc", "add", *RAW, cwd=project)
    save(project, "data")
    told = run("git", "-c", "core.quotePath=false", "ls-files", "data", cwd=project).stdout
    assert set(told.splitlines()) == {f"{path}.dvc" for path in RAW}
    (project / "data" / "starts").mkdir()
    (project / "data" / "starts" / "x.dvc").write_text("of a stage")
    assert not run("git", "status", "--porcelain", cwd=project).stdout


@pytest.mark.whole
def test_queued_experiments_and_colleagues_have_it(project):
    run("dvc", "add", *RAW, cwd=project)
    run("dvc", "repro", cwd=project)
    save(project, "data")
    run("dvc", "push", "--quiet", cwd=project)
    for seed in (2, 3):
        run(
            "dvc", "exp", "run", "--queue", "--name", f"s-{seed}", "-S", f"seed={seed}", cwd=project
        )
    done = run("dvc", "exp", "run", "--run-all", "--jobs", "2", cwd=project, check=False)
    assert done.returncode == 0 and "Failed" not in done.stdout + done.stderr, done.stderr
    assert run("dvc", "exp", "list", "--name-only", cwd=project).stdout.split() == ["s-2", "s-3"]
    colleague = project.parent / "colleague"
    run("git", "clone", "--quiet", project, colleague, cwd=project.parent)
    dry = run("dvc", "repro", "--pull", "--allow-missing", "--dry", cwd=colleague).stdout
    assert "Running" not in dry
    (colleague / "params.yaml").write_text(
        (project / "params.yaml").read_text().replace("seed: 1", "seed: 4")
    )
    said = run("dvc", "repro", "--pull", "--allow-missing", cwd=colleague).stdout
    assert "Running stage 'count'" in said
    assert (colleague / "data" / "out").read_text().endswith("the same for all")
