"""dvc.yaml against the code: dependencies, parameters, and what a change reruns."""

import ast
import dataclasses
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, run
from ruamel.yaml import YAML

from pipeline.code import WATCHING, closure, digests, is_of_a_method
from pipeline.gram.params import UNTRACKED, Learning
from pipeline.gram.trial import TRIAL
from pipeline.params import fields_of

MAIN = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
STUDY = YAML(typ="safe").load(ROOT / "study" / "stages.yaml")["stages"]
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


SCRIPTS = sorted((ROOT / "stages").glob("[a-z]*.py"))


@pytest.mark.parametrize("name", [n for n in STAGES if n not in ("params", "code")])
def test_depends_on_its_own_code(name):
    found = [d for d in body(name)["deps"] if d.startswith("data/code/")]
    of_method = re.search(r"\$\{(key|item.method)\}", found[0]) if found else None
    stem = f"{script(name).stem}/{of_method.group()}" if of_method else script(name).stem
    assert found == [f"data/code/{stem}.json"]
    assert bool(of_method) == (is_of_a_method(script(name)))


ASK = """
import json, runpy, sys
ours = lambda: [name for name in sys.modules if name.split(".")[0] in ("pipeline", "_repository")]
found = {}
for script in sys.argv[1:]:
    for name in ours():
        del sys.modules[name]
    sys.path.insert(0, script.rpartition("/")[0])
    runpy.run_path(script, run_name="asked")
    found[script] = [sys.modules[name].__file__ for name in ours()]
print(json.dumps(found))
"""


@pytest.mark.whole
def test_the_digests_cover_what_python_loads():
    """Fewer files would leave results stale. What a script loads is asked of the interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", ASK, *map(str, SCRIPTS)],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    for script_, files in json.loads(done.stdout).items():
        names = {str(Path(f).relative_to(ROOT)) for f in files if Path(f).stat().st_size}
        assert len(names) > 5 and {n for n in names if not n.startswith(WATCHING)} <= set(
            digests(Path(script_))
        ), script_


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.stem)
def test_the_digests_cover_nothing_else(path):
    """More files would recompute for nothing: each is named by an import of another one that is
    covered.
    """
    covered = [path, *(ROOT / name for name in closure(path))]
    text = "\n".join(p.read_text() for p in covered)
    for name in closure(path):
        module = (
            name.removesuffix(".py")
            .removesuffix("/__init__")
            .replace("/", ".")
            .removeprefix("stages.")
        )
        package, _, last = module.rpartition(".")
        assert re.search(
            rf"(from|import) {re.escape(module)}\b"
            rf"|from {re.escape(package) or 'x'} import .*\b{last}\b",
            text,
        ), name


def test_a_digest_changes_with_meaning_alone(tmp_path, monkeypatch):
    """A comment, a docstring or another layout reruns nothing; another operator does."""
    from pipeline import code

    monkeypatch.setattr(code, "ROOT", tmp_path)
    found = []
    for number, text in enumerate(
        ["a = 1 + 2\n", '"""What."""\n# why\na = (1 +\n     2)\n', "a = 1 - 2\n"]
    ):
        path = tmp_path / str(number) / "s.py"
        path.parent.mkdir()
        path.write_text(text)
        found += digests(path).values()
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize("name", STAGES)
def test_declares_exactly_the_parameters_it_reads(name):
    """The script can read only what READS lists (load_params hands out nothing else), and uses
    all of it.
    """
    path = script(name)
    declared = {
        re.sub(r"\$\{(key|item\.(benchmark|method|kind))\}", "{name}", k)
        for k in body(name).get("params", [])
    }
    listed = reads(path)
    named = re.search(r"--table (\S+)", body(name)["cmd"])
    table = named.group(1) if named else {"episodes": "episodes"}.get(path.stem, "labelled")
    needed = {key for key, kind in listed.values() if not fields_of(kind)} | {
        f"{key}.{field}" for key, kind in listed.values() for field in fields_of(kind)
    } - {*UNTRACKED, *(["download.min_success"] if path.stem == "download" else [])}
    assert declared == {key.replace("{table}", table) for key in needed}
    used = {
        n.attr
        for n in ast.walk(ast.parse(path.read_text()))
        if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name) and n.value.id == "p"
    }
    # `fingerprint((p, …))` uses them all, but naming each keeps the script readable; what goes into
    # one object is named by its fields
    if "settings_of(Learning, p)" in path.read_text():
        used |= {field.name for field in dataclasses.fields(Learning)}
    if "trial_of(p, " in path.read_text():
        used |= set(TRIAL) - {"backbone"}
    assert used == set(listed)


def test_every_parameter_is_read_by_a_stage():
    top = YAML(typ="safe").load(ROOT / "params.yaml")
    declared = {k.split(".")[0] for s in STAGES for k in body(s).get("params", [])}
    assert set(top) == declared


def test_every_input_and_output_stands_in_the_command():
    """So that a person can run a stage by hand, and the data flow can be read."""
    for name in STAGES:
        command = body(name)["cmd"]
        for path in body(name)["outs"]:
            assert path in command, (name, path)
        for path in body(name)["deps"]:
            waited_for = path.startswith("data/code/") or path == "data/params.json"
            if path.startswith("data/") and not waited_for:
                folder = path.rpartition("/")[0]  # of a start, two files are read
                assert path in command or (path.startswith("data/starts/") and folder in command)


def test_the_lock_has_no_stage_that_is_gone():
    """DVC never forgets one by itself, and reads and writes the whole file for every stage that
    it runs.
    """
    known = subprocess.run(
        [Path(sys.executable).with_name("dvc"), "stage", "list", "--name-only"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert set(YAML(typ="safe").load(ROOT / "dvc.lock")["stages"]) <= set(known)


def test_a_change_in_gram_leaves_clustering_alone():
    for name in (
        "download",
        "features",
        "filter",
        "embed",
        "topics",
        "label",
        "domains",
        "episodes",
    ):
        assert not [
            d
            for d in closure(script(name))
            if d.startswith(("pipeline/gram/", "pipeline/prompts/", "pipeline/report/"))
        ], name


def test_no_parameter_is_interpolated_into_a_command():
    """Only names of table entries are: a value in the command would be tracked as text, not as a
    parameter.
    """
    for name in STAGES:
        found = set(re.findall(r"\$\{([^}]*)\}", body(name)["cmd"]))
        assert found <= {
            "key",
            "item.method",
            "item.benchmark",
            "item.episodes",
            "item.kind",
            "item.seed",
        }, name


def test_rooms_point_one_way():
    """stages → rooms → artifacts and params; see docs/architecture.md for the order of the
    rooms.
    """
    order = [
        "errors",
        "zips",
        "words",
        "ahead",
        "apart",
        "upright",
        "image_file",
        "pictures",
        "code",
        "owner",
        "params",
        "written",
        "artifacts",
        "tracking",
        "stage",
        "device",
        "engine",
        "neighbours",
        "clip",
        "pairs",
        "sources",
        "clustering",
        "episodes",
        "prompts",
        "benchmarks",
        "gram",
        "world",
        "report",
        "schema",
        "merge_lock",
        "sweep",
        "stale",
        "verify_cache",
        "accept",
        "tidy",
        "remove",
        "tag",
        "versions",
    ]
    for path in sorted((ROOT / "pipeline").rglob("*.py")):
        room = path.relative_to(ROOT / "pipeline").parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text())):
            module = getattr(node, "module", None) or ""
            if isinstance(node, ast.ImportFrom) and module.startswith("pipeline."):
                other = module.split(".")[1]
                if other != room:
                    assert order.index(other) < order.index(room), f"{path}: {module}"


# One process for all: each would import PyTorch again.
EXPLAIN = """
import contextlib, io, json, runpy, sys
told = {}
for script in sys.argv[1:]:
    sys.argv, sys.path[0] = [script, "--help"], script.rpartition("/")[0]
    sys.modules.pop("_repository", None)
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.suppress(SystemExit):
        runpy.run_path(script, run_name="__main__")
    told[script] = [said.getvalue(), sys.path[0]]
print(json.dumps(told))
"""


@pytest.mark.whole
def test_every_stage_explains_itself_wherever_it_is_started():
    scripts = sorted(map(str, (ROOT / "stages").glob("[a-z]*.py")))
    done = run(sys.executable, "-c", EXPLAIN, *scripts, cwd="/")
    told = json.loads(done.stdout)
    assert len(told) == len(scripts) > 20
    for script, (help_, imports_from) in told.items():
        assert f"python stages/{Path(script).name}" in help_ and "--params" in help_, script
        assert imports_from == str(ROOT), script  # of this checkout, not of an installed one


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.stem)
def test_a_shell_takes_a_stage_s_example_as_it_stands(path):
    told = ast.get_docstring(ast.parse(path.read_text()))
    command = told[told.index("python stages/") :].partition("\n\n")[0].splitlines()
    assert all(line.endswith(" \\") for line in command[:-1])


@pytest.mark.parametrize("name", ["params.yaml", "profiles/paper.yaml", "dvc.yaml", "dvc.lock"])
def test_libyaml_reads_what_python_reads(name):
    """DVC and `read_yaml` parse by libyaml where it is; the environment has it, for DVC parses
    params.yaml anew for every stage.
    """
    from ruamel.yaml.main import CParser

    text = (ROOT / name).read_text()
    assert CParser is not None and YAML(typ="safe").Parser is CParser
    assert YAML(typ="safe").load(text) == YAML(typ="safe", pure=True).load(text)
