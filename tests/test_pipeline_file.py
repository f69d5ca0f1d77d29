"""dvc.yaml against the code: dependencies, parameters, and what a change reruns."""

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
from closure import closure
from conftest import ROOT
from ruamel.yaml import YAML

MAIN = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
STUDY = YAML(typ="safe").load(ROOT / "study" / "dvc.yaml")["stages"]
STAGES = MAIN | {f"study/{name}": stage for name, stage in STUDY.items()}


def body(name):
    return STAGES[name].get("do", STAGES[name])


def script(name):
    return ROOT / body(name)["cmd"].split()[1]


def reads(path):
    spec = importlib.util.spec_from_file_location(f"stage_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    before = list(sys.path)
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path[:] = before
        sys.modules.pop("_repository", None)
    return module.READS


def code_of(name):
    """The dependencies that are files of the project's code."""
    return [d for d in body(name)["deps"] if d.endswith(".py")]


@pytest.mark.parametrize("name", STAGES)
def test_depends_on_exactly_what_it_imports(name):
    """Fewer would leave results stale; more would recompute them for nothing."""
    path = script(name)
    assert code_of(name) == [str(path.relative_to(ROOT)), *closure(path)]


@pytest.mark.parametrize("name", STAGES)
def test_declares_exactly_the_parameters_it_reads(name):
    """The script can read only what READS lists (load_params hands out nothing else), and uses all of it."""
    path = script(name)
    declared = {re.sub(r"\$\{(key|item\.(benchmark|method|kind))\}", "{name}", k) for k in body(name).get("params", [])}
    listed = reads(path)
    assert declared == {key for key, _ in listed.values()}
    used = {n.attr for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name) and n.value.id == "p"}
    # `fingerprint((p, …))` uses them all, but naming each keeps the script readable
    assert used == set(listed)


def test_every_parameter_is_read_by_a_stage():
    top = YAML(typ="safe").load(ROOT / "params.yaml")
    declared = {k.split(".")[0] for s in STAGES for k in body(s).get("params", [])}
    assert set(top) == declared


def test_every_input_and_output_stands_in_the_command():
    """So that a person can run a stage by hand, and the data flow can be read."""
    for name in STAGES:
        command = body(name)["cmd"]
        for path in [*body(name).get("outs", []), *body(name).get("metrics", [])]:
            assert path in command, (name, path)
        for path in body(name)["deps"]:
            if path.startswith("data/"):
                assert path in command, (name, path)


def test_the_lock_has_no_stage_that_is_gone():
    """DVC never forgets one by itself, and reads and writes the whole file for every stage that it runs."""
    known = subprocess.run([Path(sys.executable).with_name("dvc"), "stage", "list", "--name-only"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert set(YAML(typ="safe").load(ROOT / "dvc.lock")["stages"]) <= set(known)


def test_a_change_in_gram_leaves_clustering_alone():
    for name in ("download", "features", "filter", "embed", "topics", "label", "domains", "episodes"):
        assert not [d for d in code_of(name) if d.startswith(("pipeline/gram/", "pipeline/prompts/", "pipeline/report/"))], name


def test_no_parameter_is_interpolated_into_a_command():
    """Only names of table entries are: a value in the command would be tracked as text, not as a parameter."""
    for name in STAGES:
        found = set(re.findall(r"\$\{([^}]*)\}", body(name)["cmd"]))
        assert found <= {"key", "item.method", "item.benchmark", "item.episodes", "item.kind", "item.seed"}, name


def test_rooms_point_one_way():
    """stages → rooms → artifacts and params; see docs/architecture.md for the order of the rooms."""
    order = ["errors", "params", "artifacts", "stage", "engine", "neighbours", "clip", "pairs", "sources", "clustering", "episodes", "prompts", "benchmarks", "gram", "world", "report", "schema"]
    for path in sorted((ROOT / "pipeline").rglob("*.py")):
        room = path.relative_to(ROOT / "pipeline").parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text())):
            module = getattr(node, "module", None) or ""
            if isinstance(node, ast.ImportFrom) and module.startswith("pipeline."):
                other = module.split(".")[1]
                if other != room:
                    assert order.index(other) < order.index(room), f"{path}: {module}"
