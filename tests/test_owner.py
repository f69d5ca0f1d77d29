"""A work folder has one owner at a time, and no stage outlives the DVC that runs it."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from conftest import ENVIRONMENT, ROOT

from pipeline import owner
from pipeline.errors import InputError
from pipeline.owner import above, owned

HOLD = """
import sys, time
from pathlib import Path
from pipeline.artifacts import resumable_folder
with resumable_folder(Path(sys.argv[1]), "x" * 16) as work:
    (work / "part").write_text("one")
    print("at work", flush=True)
    time.sleep(600)
"""


def started(script, *arguments, **environment):
    """A process that has printed its first line."""
    child = subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=ENVIRONMENT | {"PYTHONPATH": str(ROOT)} | environment,
    )
    assert child.stdout.readline(), child.stderr.read()
    return child


def stops(process, within=15):
    deadline = time.time() + within
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        assert time.time() < deadline, "still running"
        time.sleep(0.1)


def test_the_second_at_a_folder_is_told_who_is_there_and_waits_for_whom_ends(tmp_path, monkeypatch):
    from pipeline.artifacts import resumable_folder

    monkeypatch.setattr(owner, "PATIENCE", 0.2)
    out = tmp_path / "features"
    first = started(HOLD, out)
    try:
        with (
            pytest.raises(InputError, match=rf"{out}: process {first.pid} on .* is at work on it"),
            resumable_folder(out, "x" * 16),
        ):
            pass
        with resumable_folder(tmp_path / "other", "x" * 16) as work:  # others are free
            (work / "part").write_text("two")
        monkeypatch.setattr(owner, "PATIENCE", 30)
        os.kill(first.pid, signal.SIGKILL)  # the lock dies with it, the part does not
        with resumable_folder(out, "x" * 16) as work:
            assert (work / "part").read_text() == "one"
    finally:
        first.kill()
        first.communicate()
    assert [p.name for p in out.iterdir()] == ["part"]


def test_a_child_that_shares_the_work_keeps_it_its_owner_s(tmp_path, monkeypatch):
    monkeypatch.setattr(owner, "PATIENCE", 0.2)
    lock = tmp_path / ".lock"
    with pytest.raises(KeyboardInterrupt), owned(lock, "work"):
        child = subprocess.Popen(
            [sys.executable, "-c", "import time; time.sleep(600)"], pass_fds=owner.shared()
        )
        raise KeyboardInterrupt
    try:
        with pytest.raises(InputError, match="is at work on it"), owned(lock, "work"):
            pass
    finally:
        child.kill()
        child.wait()
    with owned(lock, "work"):
        assert lock.exists()
    assert not lock.exists() and not owner.shared()


# As DVC does: the stage's name in its environment, a shell between that does not go away.
DVC = """
import os, subprocess, sys
command = ["sh", "-c", f"{sys.executable} -c '{sys.argv[1]}'; true"]
subprocess.Popen(command, env=os.environ | {"DVC_STAGE": "features"}).wait()
"""
STAGE = """
import os, sys, time
from pipeline import owner, stage
owner.GRACE = 1
def main():
    print(os.getpid(), flush=True)
    while True:
        try:
            time.sleep(600)
        except KeyboardInterrupt:
            if not STUBBORN:
                raise
stage.run(main)
"""


@pytest.mark.parametrize("stubborn", [False, True])
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_stage_ends_with_its_dvc(tmp_path, how, stubborn):
    stage = STAGE.replace("STUBBORN", str(stubborn))
    assert "'" not in stage
    dvc = subprocess.Popen(
        [sys.executable, "-c", DVC, stage],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=ENVIRONMENT | {"PYTHONPATH": str(ROOT), "DVC_ROOT": str(tmp_path)},
    )
    running = psutil.Process(int(dvc.stdout.readline()))
    chain = running.parents()
    dvc.send_signal(how)
    dvc.wait()
    stops(running)
    assert chain[0].name() == "sh"
    _, said = dvc.communicate()
    assert "the dvc that ran it is gone" in said


def test_a_shell_by_hand_is_no_orphanage(tmp_path):
    """The stage's name may be set by a person, to have a run tracked."""
    script = tmp_path / "stage.py"
    script.write_text(
        "import time\nfrom pipeline import stage\n"
        "stage.run(lambda: (time.sleep(1.5), ('done', {}, None))[1])\n"
    )
    done = subprocess.run(
        ["sh", "-c", f"DVC_STAGE=x {sys.executable} {script}; true"],
        env=ENVIRONMENT | {"PYTHONPATH": str(ROOT), "DVC_ROOT": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "stage: done" in done.stdout, done.stderr


def test_by_hand_nobody_is_watched(monkeypatch):
    monkeypatch.delenv("DVC_STAGE", raising=False)
    assert above() == []
    monkeypatch.setenv("DVC_STAGE", "features")  # not in the environment that we were started with
    assert [p.pid for p in above()] == [os.getppid()]
