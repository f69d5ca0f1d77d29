"""The digest of a stage's code: what changes it, and what does not."""

import ast
import shutil
import sys
from pathlib import Path

import pytest
from conftest import ROOT, run
from ruamel.yaml import YAML

from pipeline import code
from pipeline.code import digests

# A project in small: every way in which one piece of code can reach another.
PROJECT = {
    "stages/s.py": """
        import _repository
        from pipeline import tables
        from pipeline.a import entry as begin
        from pipeline.tracking.journal import keep
        from pipeline.b import Shown
        def main():
            keep(Shown)
            return begin(), tables.DISPATCH["one"]()
        if __name__ == "__main__":
            main()
    """,
    "stages/other.py": "print('other')",
    "stages/_repository.py": "import sys",
    "pipeline/__init__.py": "",
    "pipeline/tracking/__init__.py": "",
    "pipeline/tracking/journal.py": "def keep(x):\n    return 1",
    "pipeline/errors.py": "class InputError(Exception):\n    pass",
    "pipeline/a.py": """
        '''What.'''
        from __future__ import annotations
        import dataclasses, importlib, subprocess, sys
        from pathlib import Path
        from math import floor as cut
        import json.tool
        from .rel import near
        from pipeline.errors import InputError
        from pipeline import whole
        from pipeline.star import *
        LIMIT = 3
        UNUSED = 4
        sys.setrecursionlimit(1000)
        NAMES = ["x"]
        NAMES += ["y"]
        try:
            import fast
            def speed(): return 1
        except ImportError:
            def speed(): return 2
        def entry(n: int = 5, *, label: str = "plain") -> int:
            '''Does it.'''
            from pipeline.late import later
            if n > 9:
                raise InputError(f"too many: {n}" + helper_of_messages("as before"))
            return later(Kind().value, near(), cut(LIMIT), getattr(whole, label), starred(), NAMES)
        def helper_of_messages(text): return text + "!"
        def unreached(): return 1
        @dataclasses.dataclass
        class Base:
            first: int = 1
            def shared(self): return self.first
        class Kind(Base):
            second: float = 2.0
            @property
            def value(self): return speed()
            def by_name(self): return subprocess.run([sys.executable, "-m", "pipeline.started"])
            def by_path(self): return Path(__file__).with_name("script.py")
            def by_import(self, name): return importlib.import_module(f"pipeline.plugins.{name}")
    """,
    "pipeline/b.py": "class Shown:\n    size = 1",
    "pipeline/rel.py": "def near():\n    return 1\ndef far():\n    return 1",
    "pipeline/late.py": "def later(*a):\n    return len(a)",
    "pipeline/whole.py": "def plain():\n    return 1",
    "pipeline/star.py": "def starred():\n    return 1",
    "pipeline/started.py": "def go():\n    return 1\nif __name__ == '__main__':\n    go()",
    "pipeline/script.py": "def go():\n    return 1",
    "pipeline/plugins/__init__.py": "",
    "pipeline/plugins/red.py": "def colour():\n    return 1",
    "pipeline/registry.py": """
        FOUND = {}
        def register(f):
            FOUND[f.__name__] = f
            return f
    """,
    "pipeline/tables.py": """
        from pipeline.registry import register
        def one(): return 1
        def two(): return 2
        def three(): return 3
        DISPATCH = {"one": one, "two": two}
        @register
        def kept(): return 1
    """,
}

ACTS = [
    ("pipeline/a.py", "LIMIT = 3", "LIMIT = 4"),
    ("pipeline/a.py", "setrecursionlimit(1000)", "setrecursionlimit(2000)"),
    ("pipeline/a.py", 'NAMES += ["y"]', 'NAMES += ["z"]'),
    ("pipeline/a.py", "def speed(): return 2", "def speed(): return 3"),
    ("pipeline/a.py", "n: int = 5", "n: int = 6"),
    ("pipeline/a.py", 'label: str = "plain"', 'label: str = "other"'),
    ("pipeline/a.py", "n > 9", "n > 8"),
    ("pipeline/a.py", "from math import floor as cut", "from math import ceil as cut"),
    ("pipeline/a.py", "import json.tool", "import json.decoder"),
    ("pipeline/a.py", "@dataclasses.dataclass\n", "@dataclasses.dataclass(frozen=True)\n"),
    ("pipeline/a.py", "first: int = 1", "first: int = 2"),
    ("pipeline/a.py", "second: float", "second: int"),
    ("pipeline/a.py", "return self.first", "return -self.first"),
    ("pipeline/a.py", "class Kind(Base)", "class Kind(Base, metaclass=type)"),
    ("pipeline/a.py", "@property", "@staticmethod"),
    ("pipeline/a.py", "raise InputError(", "raise ValueError("),
    ("pipeline/errors.py", "Exception", "ValueError"),
    ("pipeline/rel.py", "def near():\n    return 1", "def near():\n    return 2"),
    ("pipeline/late.py", "len(a)", "sum(a)"),
    ("pipeline/whole.py", "return 1", "return 2"),
    ("pipeline/star.py", "return 1", "return 2"),
    ("pipeline/started.py", "return 1", "return 2"),
    ("pipeline/started.py", "    go()", "    go(), go()"),
    ("pipeline/script.py", "return 1", "return 2"),
    ("pipeline/plugins/red.py", "return 1", "return 2"),
    ("pipeline/plugins/__init__.py", "", "print(1)"),
    ("pipeline/registry.py", "return f", "return 1"),
    ("pipeline/tables.py", "def one(): return 1", "def one(): return 3"),
    ("pipeline/tables.py", "def two(): return 2", "def two(): return 4"),
    ("pipeline/tables.py", "def kept(): return 1", "def kept(): return 2"),
    ("pipeline/tables.py", '"two": two', '"two": one'),
    ("pipeline/__init__.py", "", "import os\nos.umask(0)"),
    ("stages/s.py", "return begin()", "return -begin()"),
    ("stages/_repository.py", "import sys", "import sys\nsys.path.pop()"),
]
KEEPS = [
    ("pipeline/a.py", "UNUSED = 4", "UNUSED = 5"),
    ("pipeline/a.py", "def unreached(): return 1", "def unreached(): return 2"),
    ("pipeline/a.py", "too many: {n}", "{n} are too many"),
    ("pipeline/a.py", '"as before"', '"otherwise"'),
    ("pipeline/a.py", 'text + "!"', 'text + "?"'),
    ("pipeline/a.py", "'''Does it.'''", "'''Does it better.'''  # so"),
    ("pipeline/a.py", "n: int = 5", "n: float = 5"),
    ("pipeline/a.py", "-> int:", "-> float:"),
    ("pipeline/a.py", "LIMIT = 3", "LIMIT = (\n    3\n)  # three"),
    ("pipeline/rel.py", "def far():\n    return 1", "def far():\n    return 2"),
    ("pipeline/tables.py", "def three(): return 3", "def three(): return 4"),
    ("pipeline/tracking/journal.py", "return 1", "return 2"),
    ("pipeline/b.py", "size = 1", "size = 2"),  # what is only shown
    ("stages/other.py", "print('other')", "print('more')"),
    ("stages/s.py", "from pipeline.b import Shown", "from pipeline.b import Shown  # it"),
]


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.setattr(code, "ROOT", tmp_path)
    for name, text in PROJECT.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = text.strip("\n").splitlines()
        indent = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
        path.write_text("\n".join(line[indent:] for line in lines) + "\n")
    return tmp_path


def changed(folder, edit):
    name, old, new = edit
    path = folder / name
    before, text = digests(folder / "stages" / "s.py"), path.read_text()
    assert old in text, edit
    path.write_text(text.replace(old, new) if old else text + new)
    after = digests(folder / "stages" / "s.py")
    return {n for n in before.keys() | after.keys() if before.get(n) != after.get(n)}


@pytest.mark.parametrize("edit", ACTS, ids=" ".join)
def test_what_acts_changes_it(project, edit):
    assert edit[0] in changed(project, edit)


@pytest.mark.parametrize("edit", KEEPS, ids=" ".join)
def test_what_does_not_act_leaves_it(project, edit):
    assert not changed(project, edit)


def test_a_base_that_knows_its_children_makes_them_act(project):
    """A class that nothing names is there for whoever asks its base."""
    rel = project / "pipeline" / "rel.py"
    rel.write_text(rel.read_text() + "class Child:\n    size = 1\n")
    assert not changed(project, ("pipeline/rel.py", "size = 1", "size = 2"))
    base = "class Base:\n    def __init_subclass__(cls): KNOWN.append(cls)\nKNOWN = []\n"
    rel.write_text(base + rel.read_text().replace("Child:", "Child(Base):"))
    assert changed(project, ("pipeline/rel.py", "size = 2", "size = 3")) == {"pipeline/rel.py"}


@pytest.mark.parametrize(
    "text", ["def near(:\n", "<<<<<<< HEAD\ndef near(): pass\n", "x = '\0'\n", b"\xff\xfe = 1\n"]
)
def test_what_is_no_python_is_named_and_counts_for_those_who_use_it(project, text):
    script, broken = project / "stages" / "s.py", project / "pipeline" / "rel.py"
    before, other = digests(script), digests(project / "stages" / "other.py")
    broken.write_bytes(text if isinstance(text, bytes) else text.encode())
    (problem,) = code.problems(script)
    assert problem.startswith("pipeline/rel.py") and "not Python" in problem
    assert digests(script)["pipeline/rel.py"] != before["pipeline/rel.py"]
    assert digests(project / "stages" / "other.py") == other
    assert not code.problems(project / "stages" / "other.py")


SCRIPTS = sorted((ROOT / "stages").glob("[a-z]*.py"))


def copied(folder):
    for name in ("pipeline", "stages"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def test_the_layout_of_every_file_may_change(tmp_path, monkeypatch):
    expected = {script.name: digests(script) for script in SCRIPTS}
    for path in copied(tmp_path).rglob("*.py"):
        path.write_text(ast.unparse(ast.parse(path.read_text())))
    monkeypatch.setattr(code, "ROOT", tmp_path)
    assert {s.name: digests(tmp_path / "stages" / s.name) for s in SCRIPTS} == expected


ASK = """
import json, sys
from pathlib import Path
from pipeline.code import digests
print(json.dumps({s.name: digests(s) for s in sorted(Path("stages").glob("[a-z]*.py"))}))
"""
OTHERS = sorted(Path.home().glob(".pyenv/versions/3.1[2-9].*/bin/python"))


@pytest.mark.skipif(not OTHERS, reason="no other Python on this machine")
def test_every_python_finds_the_same():
    """What a file says does not depend on who reads it."""
    mine = run(sys.executable, "-c", ASK, cwd=ROOT, PYTHONPATH=ROOT).stdout
    for python in OTHERS:
        theirs = run(python, "-I", "-c", "import sys; sys.path.insert(0, '.')\n" + ASK, cwd=ROOT)
        assert theirs.stdout == mine, python


# --- this project's own stages ---


def codes(folder):
    """data/code as the stage writes it: name → content."""
    out = folder / "code-of-now"
    shutil.rmtree(out, ignore_errors=True)
    done = run(sys.executable, "stages/code.py", "--out", out, cwd=folder, PYTHONPATH="")
    files = {
        p.relative_to(out).with_suffix("").as_posix(): p.read_text() for p in out.rglob("*.json")
    }
    return files, done


def stale(folder, before):
    now, _ = codes(folder)
    return {name for name in now if now[name] != before.get(name)}


@pytest.fixture
def repository(tmp_path):
    shutil.copy(ROOT / "params.yaml", tmp_path)
    return copied(tmp_path)


def edit(folder, name, old, new):
    text = (folder / name).read_text()
    assert old in text, (name, old)
    (folder / name).write_text(text.replace(old, new))


@pytest.mark.whole
def test_an_edit_reruns_what_acts_otherwise(repository):
    before, _ = codes(repository)
    for words, expected in (
        (("pipeline/artifacts.py", "not a complete Parquet file", "no whole Parquet file"), set()),
        (
            ("pipeline/gram/serving.py", "class Classifier:", "class Classifier:\n    x = 1\n"),
            set(),
        ),
    ):
        edit(repository, *words)
        assert stale(repository, before) == expected
    edit(repository, "pipeline/gram/regulator.py", "gamma * unit + beta", "gamma * unit - beta")
    found = stale(repository, before)
    regulated = {"coop_gram", "unigram"}
    for script in ("metatrain", "tune"):
        of_script = {n.partition("/")[2] for n in found if n.startswith(f"{script}/")}
        assert of_script == regulated, script
    assert not {n for n in found if n.startswith(("start", "evaluate", "download", "features"))}
    edit(repository, "pipeline/artifacts.py", "astype(np.float32)", "astype(np.float64)")
    assert {"filter", "tune/coop", "evaluate/coop"} <= stale(repository, before)


def test_a_new_method_makes_only_its_own_stages_stale(repository):
    """As docs/methods.md tells: one file, one line in each of two lists, one entry."""
    before, _ = codes(repository)
    prompts = repository / "pipeline" / "prompts"
    (prompts / "shift.py").write_text(
        "import torch\nfrom pipeline.prompts.base import FixedText\n\n\n"
        "class Shift(FixedText):\n"
        "    def initial(self, count, generator, words=None):\n"
        "        return {'shift': torch.zeros(1, self.backbone.dim)}\n"
    )
    edit(
        repository,
        "pipeline/prompts/__init__.py",
        "import VPT\n",
        "import VPT\nfrom pipeline.prompts.shift import Shift\n",
    )
    edit(
        repository,
        "pipeline/prompts/__init__.py",
        '    "vpt": VPT,\n',
        '    "vpt": VPT,\n    "shift": Shift,\n',
    )
    edit(repository, "pipeline/gram/params.py", '"vpt", ', '"vpt", "shift", ')
    params = YAML().load(repository / "params.yaml")
    params["methods"]["direct"]["mine"] = {"prompt": "shift"}
    YAML().dump(params, repository / "params.yaml")
    found = stale(repository, before)
    own = {n for n in found if n.endswith("/mine")}
    assert {"start/mine", "tune/mine", "evaluate/mine"} <= own
    # by hand or of all methods at once: no stage but the report's depends on these
    assert {n for n in found - own if "/" in n} == set()
    assert found - own <= {s.stem for s in SCRIPTS if code.is_of_a_method(s)} | {"code"}


def test_an_unfinished_script_stops_nobody(repository):
    before, _ = codes(repository)
    (repository / "stages" / "scratch.py").write_text("def main(:\n")
    edit(repository, "pipeline/clustering/domains.py", "import", "<<<<<<< HEAD\nimport")
    now, done = codes(repository)
    assert "stages/scratch.py, line 1: not Python" in done.stderr
    assert "pipeline/clustering/domains.py, line" in done.stderr and "will fail" in done.stderr
    assert {n for n in now if now[n] != before.get(n)} == {"scratch", "domains"}


def test_a_stage_does_not_run_other_code_than_dvc_took_the_digests_of(repository):
    """Edited between `code` and the stage, or with `--single-item`: the result would be kept, and
    shared, under the code of before.
    """
    codes(repository)
    (repository / "data").mkdir()
    (repository / "code-of-now").rename(repository / "data" / "code")
    command = [sys.executable, "stages/index.py", "--captions", "none", "--shards", "none"]
    command += ["--out", "pairs.parquet"]
    here = {"cwd": repository, "check": False, "PYTHONPATH": "", "DVC_ROOT": repository}
    edit(repository, "pipeline/pairs/index.py", "str(error)", "repr(error)")
    done = run(*command, DVC_STAGE="index", **here)
    assert done.returncode == 1 and "pipeline/pairs/index.py: edited since" in done.stderr
    assert "edited since" not in run(*command, **here).stderr  # by hand, whoever edits knows
    edit(repository, "pipeline/pairs/index.py", "repr(error)", "str(error)")
    assert "edited since" not in run(*command, DVC_STAGE="index", **here).stderr
