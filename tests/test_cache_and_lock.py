"""The cache's files against their names, and git's merge of dvc.lock without the environment."""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from configobj import ConfigObj
from conftest import ENVIRONMENT, ROOT, run

from pipeline.params import read_yaml
from pipeline.verify_cache import damaged, names_of

# --- make verify ---


def put(store, content, ending=""):
    digest = hashlib.md5(content).hexdigest() + ending
    path = store / digest[:2] / digest[2:]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return digest, path


@pytest.fixture
def checkout(tmp_path):
    """A DVC repository with one folder and one file in its cache; and the folder's listing."""
    run("git", "init", "--quiet", tmp_path, cwd=tmp_path)
    run("dvc", "init", "--quiet", cwd=tmp_path)
    store = tmp_path / ".dvc" / "cache" / "files" / "md5"
    one, part = put(store, b"one")
    listing, folder = put(store, f'[{{"md5": "{one}", "relpath": "a.txt"}}]'.encode(), ".dir")
    single, _ = put(store, b"two")
    (tmp_path / "dvc.lock").write_text(
        "schema: '2.0'\nstages:\n  s:\n    cmd: x\n    outs:\n"
        f"    - path: data/out\n      md5: {listing}\n    - path: data/two\n      md5: {single}\n"
        "    - path: elsewhere\n      etag: abc\n"
    )
    assert names_of(store, tmp_path / "dvc.lock") == {
        listing: "data/out",
        one: "data/out/a.txt",
        single: "data/two",
    }
    return tmp_path, store, folder, part


def verify(folder, **changes):
    return run(
        sys.executable,
        "-m",
        "pipeline.verify_cache",
        cwd=folder,
        check=False,
        **{"PYTHONPATH": ROOT} | changes,
    )


@pytest.mark.parametrize(
    "content",
    [b"[{", b"\xff\xfe", b"", b"{}", b"null", b"[1, 2]", b'[{"md5": "x"}]', b'[{"relpath": 1}]'],
)
def test_a_damaged_listing_is_named_and_removed(checkout, content):
    """Whatever its bytes have become, JSON of another form too; and what else is damaged."""
    folder, store, listing, part = checkout
    listing.write_bytes(content)
    listing.chmod(0o444)
    part.write_bytes(b"One")
    done = verify(folder)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert "data/out is damaged" in done.stderr and done.stderr.count("; removed") == 2
    assert not list(damaged(store)) and not listing.exists() and not part.exists()
    assert "restores them" in done.stderr and verify(folder).returncode == 0


def test_a_lock_that_cannot_be_read_costs_the_names_alone(checkout):
    folder, _, _, part = checkout
    part.write_bytes(b"One")
    (folder / "dvc.lock").write_text("<<<<<<< HEAD\nstages: {\n")
    done = verify(folder)
    assert done.returncode == 1 and "of another state is damaged" in done.stderr
    assert "files cannot be named" in done.stderr and not part.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
def test_a_colleague_s_damaged_file_is_removed_from_a_shared_cache():
    """`cache.shared group`: the folders are the group's, the files are of whoever made them."""
    from pipeline.verify_cache import _remove

    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        path = Path(folder) / "of another user"
        path.write_text("damaged")
        path.chmod(0o444)
        os.seteuid(65534)
        try:
            assert _remove(path) == "removed"
        finally:
            os.seteuid(0)
        assert not path.exists()


# --- the merge driver ---

LOCK = "schema: '2.0'\nstages:\n  one: {{cmd: {}}}\n  two: {{cmd: {}}}\n"


@pytest.fixture
def diverged(tmp_path):
    """Two branches whose locks differ in neighbouring lines, after `make team`."""
    folder = tmp_path / "a team's clone"
    folder.mkdir()
    for name in ("Makefile", ".gitattributes", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "pipeline", folder / "pipeline")
    (folder / ".venv").mkdir()
    run("git", "init", "--quiet", "-b", "main", ".", cwd=folder)
    for branch, values in (("main", (1, 1)), ("theirs", (1, 3)), ("main", (2, 1))):
        if branch == "theirs":
            run("git", "switch", "--quiet", "-c", branch, cwd=folder)
        elif values != (1, 1):
            run("git", "switch", "--quiet", branch, cwd=folder)
        (folder / "dvc.lock").write_text(LOCK.format(*values))
        run("git", "add", "dvc.lock", ".gitattributes", "pipeline", cwd=folder)
        run("git", "commit", "--quiet", "-m", f"{branch} {values}", cwd=folder)
    (folder / ".venv" / ".ready").touch()
    run("make", "team", cwd=folder)
    return folder


def merge_without_environment(folder):
    """As from an editor: git is there, the environment's programs are not."""
    bare = ENVIRONMENT | {"PATH": f"{os.path.dirname(shutil.which('git'))}:/usr/bin:/bin"}
    bare.pop("PYTHONPATH", None)
    return subprocess.run(
        ["git", "merge", "--no-edit", "theirs"],
        cwd=folder,
        env=bare,
        capture_output=True,
        text=True,
    )


def test_the_driver_needs_no_environment(diverged):
    done = merge_without_environment(diverged)
    assert done.returncode == 0, done.stdout + done.stderr
    merged = read_yaml(diverged / "dvc.lock")["stages"]
    assert merged == {"one": {"cmd": 2}, "two": {"cmd": 3}}


def test_workers_of_a_queue_can_read_the_configuration(diverged):
    """DVC hands it to `configobj`, which is not git's reader."""
    found = ConfigObj(str(diverged / ".git" / "config"), list_values=False)
    assert found['merge "dvc-lock"']["driver"].startswith("env ")


def test_an_environment_in_a_path_with_umlauts(diverged, tmp_path):
    """DVC's workers write the configuration anew, and can write ASCII alone."""
    from pipeline.merge_lock import driver

    place = tmp_path / "für alle"
    place.mkdir()
    (place / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (place / "python").chmod(0o755)
    command = driver(str(place / "python"))
    assert command.isascii()
    run("git", "config", "merge.dvc-lock.driver", command, cwd=diverged)
    config = diverged / ".git" / "config"
    copied = ConfigObj(str(config), list_values=False)
    with config.open("wb") as file:  # as DVC does
        copied.write(file)
    assert run("git", "config", "merge.dvc-lock.driver", cwd=diverged).stdout.strip() == command
    done = merge_without_environment(diverged)
    assert done.returncode == 0, done.stdout + done.stderr
    assert read_yaml(diverged / "dvc.lock")["stages"] == {"one": {"cmd": 2}, "two": {"cmd": 3}}


def test_a_driver_that_cannot_run_leaves_a_conflict_to_be_seen(diverged):
    driver = run("git", "config", "merge.dvc-lock.driver", cwd=diverged).stdout.strip()
    gone = driver.replace(sys.executable, "/nowhere/bin/python")
    assert gone != driver
    run("git", "config", "merge.dvc-lock.driver", gone, cwd=diverged)
    done = merge_without_environment(diverged)
    assert done.returncode and "CONFLICT" in done.stdout
    text = (diverged / "dvc.lock").read_text()
    assert "<<<<<<<" in text and "cmd: 3" in text and "cmd: 2" in text


def test_what_a_person_keeps_in_the_cache_stays(tmp_path):
    """Only files with names of DVC's can be damaged."""
    folder = tmp_path / "ab"
    folder.mkdir()
    for name in ("notes.txt", "c" * 30 + ".bak", "C" * 30):
        (folder / name).write_text("mine")
    (folder / ("c" * 30)).write_text("other bytes")
    assert [path.name for path in damaged(tmp_path)] == ["c" * 30]
