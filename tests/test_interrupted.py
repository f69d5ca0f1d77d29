"""Stages that are stopped half-way, in a small world: what is edited meanwhile, who is killed, and
what a colleague on the same cache gets.
"""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from conftest import ENVIRONMENT, clone, run
from ruamel.yaml import YAML
from small import make_small

from pipeline.params import read_yaml

pytestmark = pytest.mark.slow
QUICK = {"OMP_NUM_THREADS": "1"}


def made_small(path):
    make_small(path)
    params = YAML().load(path)
    params["outer"]["checkpoint_every"] = 5
    params["download"]["shard_rows"] = 400
    YAML().dump(params, path)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A checkout in which all has run undisturbed, and its lock."""
    folder = Path(
        os.environ.get("SMALL_WORLD") or clone(tmp_path_factory.mktemp("small") / "world")
    )
    if "SMALL_WORLD" not in os.environ:
        made_small(folder / "params.yaml")
        run("git", "commit", "--quiet", "-am", "small", cwd=folder)
        run("dvc", "repro", cwd=folder, **QUICK)
    return folder, (folder / "dvc.lock").read_bytes()


def stage_named(folder, start):
    """The first stage of that name that has run: its full name, command and outputs."""
    stages = read_yaml(folder / "dvc.lock")["stages"]
    name = next(
        n
        for n, stage in stages.items()
        if n.partition("@")[0] == start
        and all((folder / o["path"]).exists() for o in stage["outs"])
    )
    outs = sorted(out["path"] for out in stages[name]["outs"])
    return name, stages[name]["cmd"], sorted(outs, key=lambda p: p.startswith("data/metrics"))


def content(path):
    """Name → bytes of a file or of all in a folder."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return {str(f.relative_to(path)): f.read_bytes() for f in files if f.is_file()}


# --- resume that cannot lie ---

STOP = """
import os, runpy, sys
left, sys.argv = int(sys.argv[1]), sys.argv[2:]
replace = os.replace
def counted(source, target):
    global left
    replace(source, target)
    left -= ".partial" in str(target) and not str(target).endswith((".json", ".lock"))
    if not left:
        raise KeyboardInterrupt
os.replace = counted
sys.path.insert(0, "stages")
runpy.run_path(sys.argv[0], run_name="__main__")
"""
VECTORS = (
    "pipeline/artifacts.py",
    "np.ascontiguousarray(values,",
    "np.ascontiguousarray(-np.asarray(values),",
)
# Where it is stopped: after how many finished files; and what is changed then.
EDITED = {
    "download": (
        1,
        "pipeline/pairs/clean.py",
        "entry.size = size",
        "entry.size, entry.mtime = size, 1",
    ),
    "features": (1, *VECTORS),
    "embed": (1, *VECTORS),
    "episodes": (1, *VECTORS),
    "benchmark": (1, *VECTORS),
    "metatrain": (2, "pipeline/gram/meta.py", "- inner.lr * step[m]", "+ inner.lr * step[m]"),
    "tune": (
        1,
        "pipeline/gram/tune.py",
        "return settings.warmup_lr",
        "return 2 * settings.warmup_lr",
    ),
    "evaluate": (2, "pipeline/benchmarks/evaluation.py", ".argmax(dim=-1)", ".argmin(dim=-1)"),
}


@pytest.mark.parametrize("start", EDITED)
def test_stopped_edited_and_run_again_is_as_if_run_anew(world, start):
    folder, _ = world
    after, file, old, new = EDITED[start]
    _, command, outs = stage_named(folder, start)
    script, *arguments = shlex.split(command)[1:]
    out, kept = folder / outs[0], folder / file
    undisturbed, text = content(out), kept.read_text()
    assert old in text
    here = QUICK | {"PYTHONPATH": ""}

    def finished():
        run(sys.executable, script, *arguments, cwd=folder, **here)
        return content(out)

    def stopped():
        shutil.rmtree(out)
        done = run(
            sys.executable, "-c", STOP, after, script, *arguments, cwd=folder, check=False, **here
        )
        assert done.returncode == 130 and "interrupted" in done.stderr, done.stderr
        assert not out.exists()

    try:
        stopped()
        assert finished() == undisturbed  # gone on from where it was
        stopped()
        kept.write_text(text.replace(old, new))
        gone_on = finished()
        shutil.rmtree(out)
        assert not list((folder / "data" / ".partial").rglob(f"{out.name}-*"))
        anew = finished()
        assert gone_on == anew != undisturbed
    finally:
        kept.write_text(text)
        run("dvc", "checkout", "--force", *outs, cwd=folder)


# --- kills ---


def of_stage(dvc, script):
    """The process of a stage's script under a DVC."""
    deadline = time.time() + 120
    while time.time() < deadline:
        for process in psutil.Process(dvc.pid).children(recursive=True):
            try:
                if script in process.cmdline():
                    return process
            except psutil.Error:
                pass
        assert dvc.poll() is None, "dvc has ended before the stage began"
        time.sleep(0.05)
    raise AssertionError(f"{script} did not start")


def halfway(process, folder, out, seconds):
    """Returns in the stage's middle: with the first part where it has parts, else after half the
    time that it took undisturbed.
    """
    deadline = time.time() + seconds / 2
    work = folder / "data" / ".partial" / Path(out).relative_to("data").parent
    while process.is_running():
        parts = [p for w in work.glob(f"{Path(out).name}-*") for p in w.iterdir()]
        if parts or (time.time() > deadline and not list(work.glob(f"{Path(out).name}-*"))):
            return
        time.sleep(0.02)


def alive(process):
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def family_of(process):
    """A process and all below it; one that ended by itself has nobody."""
    try:
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return [process]


def disturb(folder, name, command, wait, how, **changes):
    """Kills a forced run of a stage where `wait` returns, and waits until all of it has ended."""
    dvc = subprocess.Popen(
        ["dvc", "repro", "--force", "--single-item", name],
        cwd=folder,
        env=ENVIRONMENT | QUICK | changes,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    process = of_stage(dvc, shlex.split(command)[1])
    wait(process)
    family = family_of(process)
    if how == "group by KILL":
        with suppress(ProcessLookupError):  # all of it has ended
            os.killpg(dvc.pid, signal.SIGKILL)
    else:
        dvc.send_signal(signal.SIGKILL if how == "dvc by KILL" else signal.SIGTERM)
    dvc.wait()
    deadline = time.time() + 60
    while any(map(alive, family)):
        assert time.time() < deadline, [p for p in family if alive(p)]
        time.sleep(0.1)


def in_the_middle(folder, out):
    return lambda process: halfway(process, folder, out, 6)


# what takes less than a second or two is below
STAGES = (
    "draw_web download features embed topics gallery episodes metatrain benchmark tune zero_shot "
    "evaluate report"
).split()
HOW = ("dvc by TERM", "dvc by KILL", "group by KILL")


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("start", STAGES)
def test_killed_in_its_middle_the_lock_is_as_undisturbed(world, start, how):
    folder, lock = world
    name, command, outs = stage_named(folder, start)
    disturb(folder, name, command, in_the_middle(folder, outs[0]), how)
    run("dvc", "repro", "--no-run-cache", name, cwd=folder, **QUICK)
    assert (folder / "dvc.lock").read_bytes() == lock
    assert not (folder / "data" / ".partial" / Path(outs[0]).relative_to("data")).exists()


# Python runs it before a script. It holds the stage right before its second file gets its name.
SLOW = """
import os, sys, time
if any(word.endswith(os.environ["SLOW_SCRIPT"]) for word in sys.orig_argv[1:2]):
    replace, done = os.replace, []
    def held(source, target):
        if len(done) == 1:
            open(os.environ["SLOW_MARK"], "w").close()
            time.sleep(120)
        done.append(target)
        replace(source, target)
    os.replace = held
"""
SHORT = "captions index filter label domains start".split()


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("start", SHORT)
def test_a_short_stage_killed_between_its_outputs(world, tmp_path, start, how):
    """One of its files is finished, the others are not."""
    folder, lock = world
    name, command, _ = stage_named(folder, start)
    (tmp_path / "sitecustomize.py").write_text(SLOW)
    mark = tmp_path / "mark"
    slow = {"PYTHONPATH": str(tmp_path), "SLOW_MARK": str(mark)}

    def held(process):
        deadline = time.time() + 120
        while not mark.exists():
            assert process.is_running() and time.time() < deadline
            time.sleep(0.05)

    unfinished = lambda: set((folder / "data").rglob("*.tmp"))
    before = unfinished()
    disturb(folder, name, command, held, how, SLOW_SCRIPT=shlex.split(command)[1], **slow)
    run("dvc", "repro", "--no-run-cache", name, cwd=folder, **QUICK)
    assert (folder / "dvc.lock").read_bytes() == lock
    assert how == "group by KILL" or unfinished() == before  # nothing can tidy up after that


def test_a_colleague_on_the_same_cache_gets_no_part_for_a_whole(world, tmp_path):
    """One clone is killed half-way; the other takes from the cache what is whole, and it is."""
    folder, lock = world
    shared = folder / ".dvc" / "cache"
    name, command, outs = stage_named(folder, "features")
    disturb(folder, name, command, in_the_middle(folder, outs[0]), "dvc by KILL")
    colleague = tmp_path / "colleague"
    run("git", "clone", "--quiet", folder, colleague, cwd=tmp_path)
    run("dvc", "cache", "dir", "--local", shared, cwd=colleague)
    done = run("dvc", "repro", cwd=colleague, **QUICK)
    assert "is cached" in done.stdout or "didn't change" in done.stdout
    assert (colleague / "dvc.lock").read_bytes() == lock
    run("dvc", "repro", "--no-run-cache", name, cwd=folder, **QUICK)
    assert (folder / "dvc.lock").read_bytes() == lock
    verified = run(sys.executable, "-m", "pipeline.verify_cache", cwd=colleague, PYTHONPATH="")
    assert "all as their names say" in verified.stdout
