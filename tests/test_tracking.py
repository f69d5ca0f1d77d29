"""Records and MLflow: a real stage, a real server, and what happens when that is away."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ENVIRONMENT, clone, free_port, run

from pipeline.tracking.send import Sender, client_of

STAGE = """
import sys
sys.path.insert(0, {root!r})
import time
from pathlib import Path
from pipeline.params import load_params
from pipeline.stage import run
from pipeline.tracking.journal import keep, point
def main():
    p = load_params("params.yaml", {{"seed": ("seed", int), "outer": ("outer", dict)}})
    for step in range({steps}):
        point(step, loss=1.0 / (step + 1), sometimes=None if step % 2 else float(step))
        time.sleep({pause})
        while step == {waits_at} and not Path("go").exists():
            time.sleep(0.05)
    Path("kept.txt").write_text("kept")
    keep([Path("kept.txt")])
    return "done", {{"H": 61.5, "by_kind": {{"base": 1.0}}, "words": "none"}}, None
run(main, tracked={tracked})
"""


@pytest.fixture
def checkout(tmp_path):
    """A clone that stages are run in as DVC would run them."""
    return clone(tmp_path / "checkout")


def stage(
    folder, name="learn", tracked=True, steps=6, pause=0.0, waits_at=-1, wait=True, **changes
):
    """Runs a stage in a checkout; it waits after the step `waits_at` until the checkout has a
    file `go`.
    """
    script = folder / f"{name}.py"
    script.write_text(
        STAGE.format(root=str(folder), tracked=tracked, steps=steps, pause=pause, waits_at=waits_at)
    )
    environment = (
        ENVIRONMENT
        | {"DVC_ROOT": str(folder), "DVC_STAGE": f"{name}@one"}
        | {k: str(v) for k, v in changes.items()}
    )
    environment = {k: v for k, v in environment.items() if v}
    child = subprocess.Popen(
        [sys.executable, script],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    if not wait:
        return child
    out, err = child.communicate(timeout=120)
    return subprocess.CompletedProcess(script, child.returncode, out, err)


def records(folder):
    path = folder / "tracking" / "records.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def outbox(folder):
    return sorted((folder / "tracking" / "outbox").glob("*/run.json"))


def until(true, seconds=60):
    deadline = time.time() + seconds
    while not true():
        assert time.time() < deadline
        time.sleep(0.2)


def send(folder, **changes):
    """What is in the outbox, now; the sender that the stage started may be at it."""
    run(
        sys.executable,
        "-m",
        "pipeline.tracking.send",
        "tracking",
        "--stay",
        "0",
        cwd=folder,
        **changes,
    )
    until(lambda: not outbox(folder))


def found(uri, folder):
    """All runs of a store, newest first, with a curve and the files."""
    ask = f"""
import json, mlflow
client = mlflow.MlflowClient({uri!r})
print(json.dumps([{{
    "name": r.info.run_name,
    "status": r.info.status,
    "params": r.data.params,
    "metrics": r.data.metrics,
    "tags": r.data.tags,
    "loss": [(m.step, m.value) for m in client.get_metric_history(r.info.run_id, "loss")],
    "sometimes": len(client.get_metric_history(r.info.run_id, "sometimes")),
    "files": sorted(a.path for a in client.list_artifacts(r.info.run_id)),
}} for r in client.search_runs([e.experiment_id for e in client.search_experiments()])]))
"""
    return json.loads(run(sys.executable, "-c", ask, cwd=folder).stdout.splitlines()[-1])


@pytest.fixture
def server(tmp_path):
    """Starts `mlflow server` on a port that stays the same, and again."""
    port, started = free_port(), []

    def start():
        child = subprocess.Popen(
            [
                Path(sys.executable).with_name("mlflow"),
                "server",
                "--backend-store-uri",
                f"sqlite:///{tmp_path}/server.db",
                "--artifacts-destination",
                str(tmp_path / "files"),
                "--port",
                str(port),
                "--workers",
                "1",
            ],
            env=ENVIRONMENT,
            stdout=(tmp_path / "server.log").open("a"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        started.append(child)
        import urllib.request

        def up():
            try:
                return (
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).status
                    == 200
                )
            except OSError:
                return False

        until(up)
        return child

    def stop(child):
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()

    start.uri, start.stop = f"http://127.0.0.1:{port}", stop
    yield start
    for child in started:
        if child.poll() is None:
            stop(child)


def test_a_run_is_recorded_and_sent_to_the_local_store(checkout):
    done = stage(checkout, DVC_EXP_NAME="alpha-1", DVC_EXP_BASELINE_REV="abc")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    send(checkout)
    (r,) = found(f"sqlite:///{checkout}/tracking/mlflow.db", checkout)
    assert r["name"] == "learn@one (alpha-1)" and r["status"] == "FINISHED"
    assert r["params"]["seed"] == "1" and r["params"]["outer.optimiser"] == "adamw"
    assert r["loss"] == [[i, pytest.approx(1 / (i + 1))] for i in range(6)] and r["sometimes"] == 3
    assert (
        r["metrics"]["H"] == 61.5
        and r["metrics"]["by_kind.base"] == 1.0
        and "words" not in r["metrics"]
    )
    assert r["files"] == ["kept.txt", "record.json"]
    assert (
        r["tags"]["dvc.experiment"] == "alpha-1"
        and r["tags"]["dvc.baseline"] == "abc"
        and r["tags"]["dvc.stage"] == "learn@one"
    )
    assert (
        r["tags"]["mlflow.source.git.commit"]
        == run("git", "rev-parse", "HEAD", cwd=checkout).stdout.strip()
    )
    (record,) = records(checkout)
    assert (
        record["stage"] == "learn@one"
        and record["experiment"] == "alpha-1"
        and record["parameters"]["seed"] == record["seed"] == 1
        and record["dirty"] is False
    )


def test_an_untracked_stage_is_recorded_alone_and_a_changed_file_is_named(checkout):
    (checkout / "README.md").write_text("changed")
    assert stage(checkout, tracked=False).returncode == 0
    (record,) = records(checkout)
    assert (
        record["dirty"] is True
        and record["changed"] == ["README.md"]
        and record["status"] == "FINISHED"
    )
    assert not (checkout / "tracking" / "outbox").exists()


def test_by_hand_nothing_is_noted(checkout):
    assert (
        stage(checkout, DVC_STAGE="", DVC_ROOT="").returncode == 0
        and not (checkout / "tracking").exists()
    )


def test_a_copy_for_an_experiment_notes_where_it_came_from(checkout):
    from pipeline.tracking.place import home

    assert home(checkout / ".dvc" / "tmp" / "exps" / "tmpabc") == checkout.resolve()
    assert home(checkout) == checkout.resolve()


def test_a_real_server_gets_live_curves_and_a_server_that_is_away_costs_a_warning_once(
    checkout, server
):
    """Away: no run fails or is lost, a person is told once. Back: all of them arrive."""
    at = {"MLFLOW_TRACKING_URI": server.uri}
    for name in ("one", "two", "three"):  # nothing listens
        done = stage(checkout, name, **at)
        assert done.returncode == 0
        until(lambda: (checkout / "tracking" / "outbox" / "problem.json").exists())
        warned = done.stderr.count("cannot be sent")
        assert warned == (1 if name == "two" else 0), (name, done.stderr)
    assert len(outbox(checkout)) == 3
    running = server()
    child = stage(checkout, "four", steps=24, waits_at=11, wait=False, **at)
    # while it runs
    until(
        lambda: any(r["name"] == "four@one" and r["loss"] for r in found(server.uri, checkout)), 30
    )
    assert (
        child.poll() is None
        and next(r for r in found(server.uri, checkout) if r["name"] == "four@one")["status"]
        == "RUNNING"
    )
    (checkout / "go").touch()
    assert child.wait(60) == 0
    (checkout / "go").unlink()
    send(checkout, **at)
    arrived = {r["name"]: r for r in found(server.uri, checkout)}
    assert set(arrived) == {f"{n}@one" for n in ("one", "two", "three", "four")} and {
        r["status"] for r in arrived.values()
    } == {"FINISHED"}
    assert [len(arrived[f"{n}@one"]["loss"]) for n in ("one", "four")] == [6, 24]
    assert not (checkout / "tracking" / "outbox" / "problem.json").exists()
    # It dies in the middle of a run: the stage ends well, the rest of the curve follows, no point
    # twice.
    child = stage(checkout, "five", steps=24, waits_at=11, wait=False, **at)
    until(
        lambda: any(r["name"] == "five@one" and r["loss"] for r in found(server.uri, checkout)), 30
    )
    server.stop(running)
    (checkout / "go").touch()
    assert child.wait(60) == 0
    server()
    send(checkout, **at)
    five = next(r for r in found(server.uri, checkout) if r["name"] == "five@one")
    assert [step for step, _ in five["loss"]] == list(range(24)) and five["status"] == "FINISHED"


def test_a_server_that_never_answers_is_not_waited_for(checkout):
    """The stage is over while the sender still waits for its first answer."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        done = stage(checkout, MLFLOW_TRACKING_URI=f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert done.returncode == 0 and done.stderr == ""
        silent.settimeout(30)
        silent.accept()  # here it comes
        assert outbox(checkout) and not (checkout / "tracking" / "outbox" / "problem.json").exists()
        run("pkill", "-f", f"pipeline.tracking.send {checkout}", cwd=checkout)


def test_a_stage_that_is_killed_or_fails_is_shown_as_such(checkout):
    child = stage(checkout, "killed", steps=200, pause=0.1, wait=False)
    until(lambda: outbox(checkout) and (outbox(checkout)[0].parent / "points.jsonl").stat().st_size)
    child.kill()
    child.wait()
    child = stage(checkout, "stopped", steps=200, pause=0.1, wait=False)
    until(
        lambda: any(
            r.exists()
            and json.loads(r.read_text())["name"] == "stopped@one"
            and (r.parent / "parameters.json").exists()
            for r in outbox(checkout)
        )
    )
    child.terminate()
    assert child.wait(30) == 130
    (checkout / "params.yaml").write_text("seed: one\n")
    assert stage(checkout, "failed").returncode == 1
    send(checkout)
    status = {
        r["name"]: r["status"] for r in found(f"sqlite:///{checkout}/tracking/mlflow.db", checkout)
    }
    assert status == {"killed@one": "KILLED", "stopped@one": "KILLED", "failed@one": "FAILED"}
    assert [(r["stage"], r["status"]) for r in records(checkout)] == [
        ("stopped@one", "KILLED"),
        ("failed@one", "FAILED"),
    ]


def test_a_folder_that_cannot_be_written_costs_one_warning(checkout):
    (checkout / "tracking").write_text("no folder")
    done = stage(checkout)
    assert (
        done.returncode == 0
        and "learn: done" in done.stdout
        and "this run is not tracked" in done.stderr
        and "Traceback" not in done.stderr
    )


def test_two_checkouts_runs_at_once_are_all_sent_by_one_sender(checkout):
    children = [stage(checkout, f"s{i}", steps=10, pause=0.1, wait=False) for i in range(4)]
    assert [c.wait(60) for c in children] == [0] * 4
    send(checkout)
    runs = found(f"sqlite:///{checkout}/tracking/mlflow.db", checkout)
    assert sorted(r["name"] for r in runs) == [f"s{i}@one" for i in range(4)] and {
        len(r["loss"]) for r in runs
    } == {10}
    assert len(records(checkout)) == 4


def test_a_run_that_mlflow_refuses_does_not_hold_up_the_others(checkout):
    stage(checkout, "bad")
    stage(checkout, "good")
    send(checkout)
    bad = checkout / "tracking" / "outbox" / "0-bad"
    bad.mkdir()
    (bad / "run.json").write_text("{")
    stage(checkout, "later")
    run(sys.executable, "-m", "pipeline.tracking.send", "tracking", "--stay", "0", cwd=checkout)
    until(lambda: len(found(f"sqlite:///{checkout}/tracking/mlflow.db", checkout)) == 3)
    assert bad.exists()


class Lossy:
    """A client whose first answer to some requests is lost, after they were heeded."""

    def __init__(self, client, *lost):
        self.client, self.lost = client, set(lost)

    def __getattr__(self, name):
        def asked(*arguments, **settings):
            answer = getattr(self.client, name)(*arguments, **settings)
            if name in self.lost:
                self.lost.remove(name)
                raise ConnectionError(f"the answer to {name} is lost")
            return answer

        return asked


def waiting(store, uri, parameters, name="learn@one"):
    """A run that has ended, in an outbox."""
    folder = store / "outbox" / name
    (folder / "files").mkdir(parents=True)
    about = {"id": name, "uri": uri, "started": 1.0, "process": os.getpid(), "name": name}
    about |= {"revision": "abc", "dirty": False, "experiment": None, "baseline": None}
    point = {"step": 0, "time": 1.0, "values": {"loss/own+": 0.5}}
    (folder / "run.json").write_text(json.dumps(about))
    (folder / "parameters.json").write_text(json.dumps(parameters))
    (folder / "points.jsonl").write_text(json.dumps(point) + "\n")
    (folder / "files" / "record.json").write_text("{}")
    figures = {"H": 61.5, "own+": {"base@1": 2.0}}
    (folder / "end.json").write_text(
        json.dumps({"status": "FINISHED", "ended": 2.0, "figures": figures})
    )
    return folder


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """An MLflow of a file; making its tables takes the longest."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"
    return uri, client_of(uri)


def runs_in(client):
    return client.search_runs([e.experiment_id for e in client.search_experiments()])


@pytest.mark.parametrize(
    "lost", ["create_run", "log_batch", "log_artifacts", "set_terminated", "create_experiment"]
)
def test_an_answer_that_is_lost_makes_no_second_run(database, tmp_path, lost):
    uri, client = database
    before = {run.info.run_id for run in runs_in(client)}
    waiting(tmp_path, uri, {"seed": 1}, f"of-{lost}")
    sender = Sender(tmp_path)
    sender.clients[uri] = Lossy(client, lost)
    for _ in range(3):
        sender.failed.clear()  # as if ten seconds had passed
        sender.deliver()
    made = [run for run in runs_in(client) if run.info.run_id not in before]
    assert [run.info.status for run in made] == ["FINISHED"]
    assert made[0].data.params == {"seed": "1"} and made[0].data.metrics["H"] == 61.5
    assert not sender.waiting()


def test_names_that_mlflow_refuses_are_written_otherwise(database, tmp_path):
    uri, client = database
    waiting(tmp_path, uri, {"methods": {"own+": {"lr": 0.1}, "own*": {"lr": 0.2}}}, "odd")
    assert Sender(tmp_path).deliver()
    run = client.search_runs(
        [e.experiment_id for e in client.search_experiments()], "tags.`gram.outbox` = 'odd'"
    )[0]
    assert run.data.params == {"methods.own_2b_.lr": "0.1", "methods.own_2a_.lr": "0.2"}
    assert run.data.metrics == {"loss/own_2b_": 0.5, "H": 61.5, "own_2b_.base-1": 2.0}


def test_a_run_that_is_refused_is_told_although_others_go_through(database, tmp_path):
    """The next run's success used to wipe the word away before anybody had read it."""
    uri, client = database
    folder = waiting(tmp_path, uri, {"seed": 1}, "a-bad")
    (folder / "points.jsonl").write_text("{}\n")  # no point
    waiting(tmp_path, uri, {"seed": 2}, "b-good")
    sender = Sender(tmp_path)
    sender.clients[uri] = client
    sender.deliver()
    problem = json.loads((tmp_path / "outbox" / "problem.json").read_text())
    assert problem["what"] == "a-bad" and not problem["told"]
    assert folder.exists() and not (tmp_path / "outbox" / "b-good").exists()
