"""docs/own-captions.md, command by command, with drawings in the place of one's own pictures."""

import re
import shlex
import zipfile

import pytest
from conftest import ROOT, clone, run, with_values

BLOCK = re.compile(r"```sh\n(.*?)```", re.S)
# A line of profiles/own.yaml marked <-, and what makes it a matter of minutes.
OWN = {
    "source.pictures": "pictures.zip",
    "download.image_size": 64,
    "filter.min_side": 16,
    "topics.min_cluster_size": 8,
    "meta_steps": 4,
    "validation_tasks": 4,
    "outer.validate_every": 4,
    "episodes.shifted.tasks": 20,
    "ways": 4,
    "support_shots": 2,
    "query_shots": 2,
    "few_shot.draws": [1],
    "few_shot.seeds": [1],
    "few_shot.epochs": 2,
}
WEB = {"classes": 24, "pictures_per_class": 40}
BENCHMARK = {"classes": 6, "train_per_class": 16, "test_per_class": 6}


def commands():
    page = (ROOT / "docs" / "own-captions.md").read_text()
    return [line.split("#")[0] for block in BLOCK.findall(page) for line in block.splitlines()]


def draw(folder):
    """Captions with their pictures, a benchmark and a backbone, where own.yaml looks for them."""
    drawn = {f"world.webs.demo.{key}": value for key, value in WEB.items()}
    drawn |= {f"world.benchmarks.animals.{key}": value for key, value in BENCHMARK.items()}
    params = with_values(folder / "drawn.yaml", drawn)
    for stage, name, out in (
        ("draw_web", "demo", "own/captions"),
        ("draw_benchmark", "animals", "own/benchmark.zip"),
    ):
        script = f"stages/{stage}.py"
        run("python", script, "--params", params, "--name", name, "--out", out, cwd=folder)
    table = folder / "own" / "captions" / "captions.tsv"
    table.write_text("caption\turl\n" + table.read_text())  # one's own tables name their columns
    zipfile.ZipFile(folder / "own" / "benchmark.zip").extractall(folder / "own" / "benchmark")
    (folder / "own" / "backbone").symlink_to(ROOT / "demo" / "backbone")


@pytest.mark.slow
def test_every_command_of_the_page_runs(tmp_path):
    folder = clone(tmp_path / "clone")
    draw(folder)
    copied, *rest = map(shlex.split, commands())
    assert [copied[0], copied[2]] == ["cp", "params.yaml"] and len(rest) == 5
    run(*copied, cwd=folder)
    with_values(folder / "params.yaml", OWN, source=folder / "params.yaml")
    said = {" ".join(words): run(*words, cwd=folder).stdout for words in rest}
    for target in ("filter", "topics", "domains"):
        assert f"Running stage '{target}'" in said[f"dvc repro {target}"]
        assert f"Running stage '{target}'" not in said["dvc repro"]
    assert (folder / "data" / "report" / "report.html").is_file()
    published = folder / "data" / "published" / "coop_gram"
    assert (published / "prompt.safetensors").is_file()
    assert "Running stage" not in run("dvc", "repro", cwd=folder).stdout
    classes = folder / "own" / "benchmark" / "train" / "flat"
    adapted = ("gram", "adapt", classes, "--out", "m", "--start", published, "--method", "start")
    run("python", "-m", *adapted, "--backbone", "own/backbone", "--folds", 0, cwd=folder)


def test_the_page_names_what_there_is():
    stages = (ROOT / "dvc.yaml").read_text()
    for line in commands():
        words = shlex.split(line)
        if words[0] == "cp":
            assert (ROOT / words[1]).is_file()
        elif words[:2] == ["dvc", "repro"]:
            assert all(re.search(rf"^  {target}:$", stages, re.M) for target in words[2:])
        else:
            assert (
                words[:2] == ["python", "-m"]
                and (ROOT / words[2].replace(".", "/")).with_suffix(".py").is_file()
            )
    named = re.findall(
        r"`python (stages/\w+\.py) --help`", (ROOT / "docs/own-captions.md").read_text()
    )
    assert named and all((ROOT / script).is_file() for script in named)
