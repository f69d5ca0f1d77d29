"""Installed libraries against constraints.txt."""

import sys
from importlib import metadata

import pytest
from conftest import ROOT, run

from pipeline import versions
from pipeline.versions import differing

INSTALLED = {"one": "1.2.0", "torch": "2.9.0+cpu", "ruamel.yaml": "0.18.1", "pre": "2.0rc1"}


@pytest.fixture
def constraints(tmp_path, monkeypatch):
    def version(name):
        if name in INSTALLED:
            return INSTALLED[name]
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(versions, "version", version)

    def write(*lines):
        (tmp_path / "constraints.txt").write_text("\n".join(lines) + "\n")
        return differing(tmp_path / "constraints.txt")

    return write


@pytest.mark.parametrize(
    "line, told",
    [
        ("one==1.2.0", []),
        ("one==1.2", []),
        ("one==1.3.0", ["one 1.2.0 (==1.3.0)"]),
        ("one==1.3.0  # why it is pinned", ["one 1.2.0 (==1.3.0)"]),
        ("one==1.3.0; python_version < '3'", []),
        ("one==1.3.0 ; python_version >= '3.11' and os_name == 'posix'", ["one 1.2.0 (==1.3.0)"]),
        ("one==1.3.0; sys_platform == 'win32'", []),
        ("one>=1,<2", []),
        ("torch==2.9.0", []),
        ("torch==2.8.0", ["torch 2.9.0+cpu (==2.8.0)"]),
        ("pre==2.0rc1", []),
        ("ruamel.yaml==0.18.1", []),
        ("absent==1.0", []),
        ("--index-url https://example.org", []),
        ("", []),
        ("# one==9", []),
    ],
)
def test_a_line_of_the_file(constraints, line, told):
    assert constraints(line) == told


def test_a_line_that_cannot_be_read_is_named(constraints):
    (told,) = constraints("one==1.2.0", "one=1.2.0")
    assert told.startswith("line 2 cannot be read")


def test_check_says_it_in_one_line(tmp_path):
    """And says nothing where nothing differs, or there is no such file."""

    def said():
        return run(sys.executable, "-m", "pipeline.versions", cwd=tmp_path, PYTHONPATH=ROOT).stderr

    assert not said()
    names = ("dvc", "polars", "numpy", "pydantic", "torch", "rich", "tqdm", "scipy", "pyarrow")
    (tmp_path / "constraints.txt").write_text("".join(f"{name}==0.0.1\n" for name in names))
    assert said().count("\n") == 1 and f"dvc {metadata.version('dvc')} (==0.0.1)" in said()
    assert "and 1 more" in said() and "pip install -c constraints.txt" in said()
    (tmp_path / "constraints.txt").write_text(f"dvc=={metadata.version('dvc')}\n")
    assert not said()


def test_make_check_asks():
    assert "\t@python -m pipeline.versions\n" in (ROOT / "Makefile").read_text()
