"""A stage replaces what a stage wrote, and nothing that a person made; the same holds of every
output option of every command.
"""

import argparse
import importlib
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from conftest import ROOT, snapshot
from typer.models import OptionInfo

from gram.cli import app
from pipeline.artifacts import fingerprint, kept_parts, resumable_folder
from pipeline.errors import InputError, is_disk_full
from pipeline.stage import output
from pipeline.written import check_replaceable, is_written, note_written

SCRIPTS = sorted((ROOT / "stages").glob("[a-z]*.py"))
MODULES = [
    "pipeline.benchmarks.__main__",
    "pipeline.sweep",
    "pipeline.tidy",
    "pipeline.tracking.send",
]


def a_person_s_folder(folder):
    """Of every kind of thing: another program's config, hidden files, links, shards."""
    (folder / "deeper").mkdir(parents=True)
    for name in ("notes.txt", ".hidden", "deeper/00000.parquet", "00000.tar", "report.html"):
        (folder / name).write_text("mine")
    (folder / "config.json").write_text(json.dumps({"model_type": "clip"}))
    (folder / "latest").symlink_to("deeper")
    (folder / "nowhere").symlink_to("gone")
    (folder / "notes.txt").chmod(0o444)
    return folder


class Parsed(Exception):
    """Ends a script where it would read its arguments."""


def parser_of(run, monkeypatch):
    """The argparse parser that a script or a module makes."""
    found = []

    def catch(self, *_):
        found.append(self)
        raise Parsed

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", catch)
        with pytest.raises(Parsed):
            run()
    return found[0]


def options(parser):
    """(option, what reads its value) of a parser and its commands."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from options(command)
        elif action.option_strings:
            yield action.option_strings[-1], action.type


# What a script reads: a path that is neither here nor an `output` fails the test below.
READ = {
    *("--params", "--captions", "--kept", "--clusters", "--domains", "--runs", "--features"),
    *("--labels", "--pairs", "--shards", "--tuned", "--benchmarks", "--topics", "--labelled"),
    *("--sentences", "--reduced", "--episodes", "--start", "--figures", "--batch", "--benchmark"),
    *("--map", "--gallery", "--starts", "--scores"),
}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_every_output_of_every_stage_refuses_a_person_s_folder(
    script, tmp_path, monkeypatch, capsys
):
    monkeypatch.syspath_prepend(str(script.parent))
    monkeypatch.setattr(sys, "argv", [str(script)])
    main = runpy.run_path(str(script))["main"]
    parser = parser_of(main, monkeypatch)
    kinds = {name: getattr(kind, "__name__", "") for name, kind in options(parser)}
    outputs = [name for name, kind in kinds.items() if kind in ("output", "finished")]
    paths = {name for name, kind in options(parser) if kind is Path}
    assert paths <= READ, f"{paths - READ}: an output, or one more input?"
    assert "--metrics" in outputs
    mine = a_person_s_folder(tmp_path / "mine")
    before = snapshot(tmp_path)
    for name in outputs:
        for place in (mine, mine / "notes.txt", mine / "nowhere", mine / "latest"):
            monkeypatch.setattr(sys, "argv", [str(script), name, str(place)])
            with pytest.raises(SystemExit) as ended:
                main()
            assert ended.value.code == 2
            assert f"argument {name}: {place}: is there already" in capsys.readouterr().err
    assert snapshot(tmp_path) == before


def test_the_other_commands_write_where_this_test_knows(monkeypatch):
    """`sweep --out` is tried below, `fetch --root` adds what is not there (test_layouts)."""
    known = {"--root", "--out", "--csv", "--dry", "--cached"}
    for name in MODULES:
        module = importlib.import_module(name)
        call = module.main if not module.main.__code__.co_argcount else lambda m=module: m.main([])
        monkeypatch.setattr(sys, "argv", [name])
        parser = parser_of(call, monkeypatch)
        paths = {option for option, kind in options(parser) if kind is Path}
        assert paths <= known, f"{name}: {paths - known}"


def test_every_path_that_gram_takes_is_known():
    """Its outputs are tried in test_face_keeps, test_face_onnx and test_face_page."""
    found = {
        (command.callback.__name__, name)
        for command in app.registered_commands
        for name, hint in get_type_hints(command.callback, include_extras=True).items()
        if "Path" in str(hint) and any(isinstance(m, OptionInfo) for m in get_args(hint))
    }
    assert found == {
        *(("adapt", "out"), ("adapt", "start"), ("predict", "copy_to"), ("export", "onnx")),
        ("serve", "corrections"),
    }


def test_what_a_stage_wrote_is_replaced_until_somebody_changes_it(tmp_path):
    out = tmp_path / "out"
    check_replaceable(out)
    out.mkdir()
    check_replaceable(out)  # an empty folder
    (out / "00000.parquet").write_text("rows")
    with pytest.raises(InputError, match="is there already, and is not what a stage wrote by hand"):
        check_replaceable(out)
    note_written(out)
    check_replaceable(out)
    for change, back in (
        (lambda: (out / "00000.parquet").write_text("ROWS"), None),
        (lambda: (out / "notes").write_text(""), lambda: (out / "notes").unlink()),
        (lambda: (out / "more").mkdir(), lambda: (out / "more").rmdir()),
        (lambda: (out / "l").symlink_to("x"), lambda: (out / "l").unlink()),
    ):
        change()
        assert not is_written(out)
        back() if back else (out / "00000.parquet").write_text("rows")
        assert is_written(out)
    (out / "00000.parquet").rename(out / "00001.parquet")
    assert not is_written(out)


def test_a_file_is_known_by_its_bytes(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("{}")
    note_written(path)
    path.write_text("{}")  # other times, as DVC's checkout gives
    check_replaceable(path)
    path.unlink()
    path.mkdir()
    check_replaceable(path)  # empty
    path.rmdir()
    path.symlink_to(tmp_path / "b")
    with pytest.raises(InputError):
        check_replaceable(path)


def test_a_folder_is_replaced_by_its_own_stage_alone(tmp_path):
    out = tmp_path / "out"
    for content in ("one", "two"):
        with resumable_folder(out, fingerprint(content)) as work:
            (work / "part").write_text(content)
        assert (out / "part").read_text() == content
    (out / "mine").write_text("notes")
    with pytest.raises(InputError, match="is there already"), resumable_folder(out, "0" * 16):
        raise AssertionError("work has begun")
    assert (out / "mine").read_text() == "notes" and (out / "part").read_text() == "two"


def test_what_comes_while_a_stage_works_stays(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(InputError, match="is there already"), resumable_folder(out, "1" * 16) as w:
        (w / "part").write_text("hours")
        out.mkdir()
        (out / "mine").write_text("notes")
    assert (out / "mine").read_text() == "notes" and (w / "part").read_text() == "hours"


def test_a_person_s_folder_beside_unfinished_work_stays(tmp_path):
    """Whatever it is called: work folders are known by a mark beside them, not by their names."""
    out, mine = tmp_path / "out[1]", tmp_path / ".partial" / f"out[1]-{'a' * 16}"
    mine.mkdir(parents=True)
    (mine / "notes").write_text("mine")
    for number in (1, 2):  # interrupted, and ended with other settings
        with (
            pytest.raises(KeyboardInterrupt) if number == 1 else open(os.devnull),
            kept_parts(out, f"{number}" * 16) as work,
        ):
            (work / "part").touch()
            if number == 1:
                raise KeyboardInterrupt
    assert (mine / "notes").read_text() == "mine"
    assert [path.name for path in mine.parent.iterdir() if path.is_dir()] == [mine.name]


def test_an_output_argument_says_what_is_wrong(tmp_path):
    (tmp_path / "a").touch()
    with pytest.raises(argparse.ArgumentTypeError, match="remove it yourself"):
        output(str(tmp_path / "a"))


WRITERS = {
    "polars": "import polars as pl; pl.DataFrame({'a': range(99999)}).write_csv(path)",
    "arrow": "import numpy, pyarrow as pa; from pyarrow.parquet import write_table as w; "
    "w(pa.table({'a': numpy.random.default_rng(0).random(99999)}), path)",
    "numpy": "import numpy; numpy.savez(path, numpy.arange(99999))",
    "safetensors": "import torch; from safetensors.torch import save_file; "
    "save_file({'a': torch.rand(99999)}, path)",
    "sqlite": "import sqlite3; c = sqlite3.connect(path); c.execute('create table t (x)'); "
    "c.execute('insert into t values (zeroblob(999999))'); c.commit()",
}


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory):
    """A file system of 64 KiB, where this user may make one."""
    folder = tmp_path_factory.mktemp("small_disk")
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("library", WRITERS)
def test_a_full_disk_is_known_whatever_library_meets_it(small_disk, library):
    with pytest.raises(Exception) as full:
        exec(WRITERS[library], {"path": str(small_disk / "f.npz")})
    (small_disk / "f.npz").unlink(missing_ok=True)
    assert is_disk_full(full.value), repr(full.value)
    assert not is_disk_full(ValueError("no such thing"))
    wrapped = RuntimeError("writing failed")
    wrapped.__cause__ = full.value
    assert is_disk_full(wrapped)
