"""Work in a process of its own: told of, interrupted at once, and gone with its stage."""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import psutil
import pytest
from conftest import ROOT

from pipeline import stage
from pipeline.apart import apart
from pipeline.clustering import topics
from pipeline.clustering.neighbours import neighbour_graph
from pipeline.clustering.params import Grouping
from pipeline.errors import InputError
from pipeline.stage import progress

LINUX = sys.platform == "linux"


def hold(seconds, gives):
    """As compiled code does: nothing else of this process runs meanwhile."""
    ctypes.PyDLL(None).sleep(seconds)
    return gives


def fail():
    raise InputError("no topic")


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def test_what_keeps_the_lock_is_told_of_all_the_while(monkeypatch, capsys):
    monkeypatch.setattr(stage, "TOLD", 0.2)
    with stage.Lines(None, desc="clusters", total=1):
        assert apart(partial(hold, 2, "found")) == "found"
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) >= 8 and all(line.startswith("clusters: 0 of 1") for line in lines)


def test_what_it_raises_is_raised_here():
    with pytest.raises(InputError, match="no topic"):
        apart(fail)
    with pytest.raises(InputError, match="killed, as the system does when memory runs out"):
        apart(die)


SCRIPT = """
import _repository
from functools import partial
from pipeline.apart import apart
from pipeline.stage import run
from test_apart import hold

def main():
    return apart(partial(hold, 600, "too late")), {}, None

if __name__ == "__main__":
    run(main)
"""


def child_of(process):
    """The process that holds, once it does: the first asleep that is no tracker of resources."""
    for _ in range(600):
        for child in psutil.Process(process.pid).children():
            if "spawn_main" in " ".join(child.cmdline()) and held(child):
                return child
        time.sleep(0.1)
    raise AssertionError("nothing was started")


def held(child):
    before = child.cpu_times()
    time.sleep(0.5)
    return child.cpu_times() == before and before.user > 0.3


@pytest.mark.parametrize(
    ("how", "code"),
    [
        (signal.SIGTERM, 130),
        (signal.SIGINT, 130),
        pytest.param(
            signal.SIGKILL, -9, marks=pytest.mark.skipif(not LINUX, reason="Linux's kernel alone")
        ),
    ],
)
def test_a_stage_ends_at_once_and_nothing_goes_on(tmp_path, how, code):
    (script := tmp_path / "stages" / "long.py").parent.mkdir()
    script.write_text(SCRIPT)
    shutil.copy(ROOT / "stages" / "_repository.py", script.parent)
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    stage_process = subprocess.Popen(
        [sys.executable, script], env={**os.environ, "PYTHONPATH": path}
    )
    child = child_of(stage_process)
    stage_process.send_signal(how)
    assert stage_process.wait(20) == code
    psutil.wait_procs([child], timeout=20)
    assert not child.is_running()


def test_topics_found_apart_are_the_same(monkeypatch):
    """Beyond so many points that it takes a minute, here beyond none."""
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.normal(c, 0.1, (60, 8)) for c in np.eye(8)[:4]])
    points = (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)
    settings = Grouping(
        components=3, min_dist=0.0, min_cluster_size=20, min_samples=5, selection="leaf"
    )
    graph, _ = neighbour_graph(points, 10, 1000, 0.9, 0)
    weight, apart_from = np.ones(len(points), np.int64), []
    monkeypatch.setattr(topics, "apart", lambda work: apart_from.append(1) or apart(work))
    here = topics.group(points, weight, graph, settings, 0, progress)
    assert here.topic.max() >= 3 and not apart_from
    monkeypatch.setattr(topics, "FOR_A_MINUTE", 0)
    there = topics.group(points, weight, graph, settings, 0, progress)
    assert apart_from == [1] and here.validity == there.validity
    assert np.array_equal(here.topic, there.topic)
    assert np.array_equal(here.strength, there.strength)
