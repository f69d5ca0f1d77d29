"""What a stage says: while it works, when it is stopped, and where it cannot start."""

import ast
import gc
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT

from pipeline import stage
from pipeline.errors import InputError
from pipeline.pairs.noise import mixture_crossing
from pipeline.params import Section, validate
from pipeline.schema import check


def python(code, *options, **more):
    return subprocess.run(
        [sys.executable, *options, "-c", code], cwd=ROOT, capture_output=True, text=True, **more
    )


STOPPED = """
import os, signal
from pipeline.artifacts import replacing, resumable_folder
from pipeline.stage import run

def main():
    if {resumable}:
        with resumable_folder({out!r}, "0" * 16) as work:
            for part in range({parts}):
                with replacing(work / str(part)) as temporary:
                    temporary.write_text("x")
            with replacing(work / "last") as temporary:
                temporary.write_text("half")
                os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)

run(main)
"""


@pytest.mark.parametrize(
    "resumable, parts, words",
    [
        (True, 2, "finished parts are kept"),
        (True, 0, "no finished part to keep, so the next run begins anew"),
        (False, 0, "no finished part to keep, so the next run begins anew"),
    ],
)
def test_a_stage_that_is_stopped_says_what_is_left(tmp_path, resumable, parts, words):
    done = python(STOPPED.format(resumable=resumable, parts=parts, out=str(tmp_path / "out")))
    assert done.returncode == 130 and words in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


def test_the_collector_rests_until_the_stage_begins(tmp_path, monkeypatch):
    """And works again while it runs; a test that imports a script keeps its own."""
    seen = tmp_path / "seen"
    script = tmp_path / "stages" / "watched.py"
    script.parent.mkdir()
    shutil.copy(ROOT / "stages" / "_repository.py", script.parent)
    (tmp_path / "pipeline").symlink_to(ROOT / "pipeline")
    script.write_text(
        "import _repository, gc\nfrom pathlib import Path\nbefore = gc.isenabled()\n"
        "from pipeline.stage import run\n\n\ndef main():\n"
        f"    Path({str(seen)!r}).write_text(f'{{before}} {{gc.isenabled()}}')\n"
        "    return 'done', {}, None\n\n\nrun(main)\n"
    )
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and seen.read_text() == "False True", done.stderr
    monkeypatch.syspath_prepend(str(ROOT / "stages"))
    monkeypatch.delitem(sys.modules, "_repository", raising=False)
    monkeypatch.setattr(sys, "path", [*sys.path])
    __import__("_repository")
    assert gc.isenabled()


def test_without_a_terminal_progress_is_a_line_now_and_then(monkeypatch, capsys):
    monkeypatch.setattr(stage, "TOLD", 0.05)
    for _ in stage.progress(range(3), "pictures"):
        time.sleep(0.12)
    lines = capsys.readouterr().err.splitlines()
    assert 3 <= len(lines) <= 8 and lines[0] == "pictures: 0 of 3, 00:00 so far"
    assert any(
        re.fullmatch(r"pictures: 2 of 3, 00:00 so far, [\d.]+ a second, 00:00 left", line)
        for line in lines
    )
    time.sleep(0.12)
    assert not capsys.readouterr().err  # it ends with the work


def test_progress_of_steps_and_of_what_is_quick(monkeypatch, capsys):
    assert list(stage.progress(iter("ab"), "letters")) == ["a", "b"]
    monkeypatch.setattr(stage, "TOLD", 0.05)
    steps = stage.progress(None, "neighbours", total=2)
    time.sleep(0.08)
    steps.update()
    steps.set_description("clustering")
    time.sleep(0.08)
    steps.close()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("neighbours: 0 of 2") and lines[-1].startswith("clustering: 1 of 2")


def test_a_stage_is_heard_of_where_nothing_counts_its_steps(monkeypatch, capsys):
    """Reading, joining and writing millions of rows took minutes without a word."""
    monkeypatch.setattr(stage, "TOLD", 0.05)
    with stage.alive("label"):
        time.sleep(0.2)
        with stage.progress(None, "words", total=2):
            time.sleep(0.2)
        time.sleep(0.2)
    time.sleep(0.1)
    said = [line.partition(":")[0] for line in capsys.readouterr().err.splitlines()]
    first, second = said.index("words"), len(said) - said[::-1].index("words")
    assert first > 0 and set(said[:first]) == {"label"} == set(said[second:])
    assert set(said[first + 1 : second - 1]) <= {"words"} and len(said) <= 14


def test_figures_that_are_no_numbers_are_left_out_and_told_of(capsys):
    figures = {"a": 1.5, "b": float("nan"), "c": {"d": float("inf"), "e": 2}, "f": None}
    assert stage.measured(figures) == {"a": 1.5, "c": {"e": 2}, "f": None}
    assert "'b' is nan" in capsys.readouterr().err


def test_a_python_without_the_environment_is_told_what_to_do():
    """Without site-packages, as the system's Python is when the environment is not activated."""
    scripts = sorted(path.name for path in (ROOT / "stages").glob("[a-z]*.py"))
    assert len(scripts) > 20
    for script in ("topics.py", "metatrain.py", "code.py"):
        done = subprocess.run(
            [sys.executable, "-S", "-E", f"stages/{script}", "--help"],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
        assert done.stderr.startswith(f"{script.removesuffix('.py')}: error: ")
        assert "has no package 'numpy'" in done.stderr and ". .venv/bin/activate" in done.stderr


def test_a_python_too_old_is_told_what_to_do():
    code = "import _repository as r; print(r.problem((3, 9, 18), None))"
    done = python(f"import sys; sys.path.insert(0, 'stages'); {code}")
    assert "is Python 3.9, and 3.11 or later is needed" in done.stdout, done.stderr


@pytest.mark.parametrize("script", sorted(ROOT.glob("stages/*.py")), ids=lambda path: path.name)
def test_an_older_python_can_read_the_scripts_as_far_as_the_words(script):
    """Python reads the whole of a script before it runs its first line, which says what to do."""
    tree = ast.parse(script.read_text(), feature_version=(3, 9))
    first = next(node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom))
    assert script.name == "_repository.py" or first.names[0].name == "_repository"


def test_errors_of_params_name_the_file_and_the_key_and_no_more(tmp_path):
    text = (ROOT / "params.yaml").read_text()
    path = tmp_path / "params.yaml"
    old = "\n  benchmarks:\n  - animals\n  - food\n"
    assert text.count(old) == 1
    path.write_text(text.replace(old, old.replace("food", "gone")))
    with pytest.raises(InputError) as error:
        check(path)
    lines = str(error.value).splitlines()
    assert lines[0].startswith(f"{path}: ") and all(len(line) < 400 for line in lines), lines
    assert "study.benchmarks names 'gone'" in str(error.value)


def test_a_wrong_value_is_shown_and_not_a_page_of_it():
    class Few(Section):
        names: list[int]
        count: int

    with pytest.raises(InputError) as error:
        validate(Few, {"names": "x y " * 5000, "count": ["a"] * 5000}, "few", "params.yaml")
    lines = str(error.value).splitlines()
    assert len(lines) == 2 and all(len(line) < 250 for line in lines)
    assert "parameter 'few.names'" in lines[0] and "'x y x y" in lines[0]


@pytest.mark.parametrize("scores", [[0.3], [0.3, 0.3, 0.3], [0.1, 0.9], []])
def test_a_mixture_of_too_few_scores_is_explained(scores):
    with pytest.raises(InputError, match="mixture, but there are only . different scores"):
        mixture_crossing(np.array(scores, np.float32), 0.5)
