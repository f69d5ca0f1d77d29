"""Brings the runs of the outbox to MLflow, beside the stages.

    python -m pipeline.tracking.send tracking        # what could not be sent earlier

A tracked stage starts one unless one is at work; it stays a while for the stages to come, so that
MLflow is loaded about once in a `dvc repro`. How far it came with a run is kept with the run:
another one goes on from there, and nothing is lost by a server that is away.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.artifacts import read_json, write_json
from pipeline.errors import InputError
from pipeline.tracking.journal import PROBLEM, STOPPED, alone
from pipeline.tracking.place import outbox_of

EXPERIMENT = "gram"
LOOK_EVERY, STAY, AGAIN_AFTER = 0.5, 30.0, 10.0  # seconds
# MLflow's limits; the last two in characters
POINTS_AT_ONCE, PARAMETERS_AT_ONCE, VALUE, NAME = 1000, 100, 500, 250
OUTBOX = "gram.outbox"  # tag: which run of the outbox it is


def flat(values: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Nested mappings as (dotted name, value)."""
    if isinstance(values, dict) and values:
        for key, value in values.items():
            yield from flat(value, f"{name}.{key}" if name else str(key))
    elif name:
        yield name, values


def client_of(uri: str):
    """An MLflow client that gives up soon: a person waits for none of this, but a sender is not
    to hang for ever.
    """
    # A request that is sent twice unseen would make two runs; the sender itself tries again.
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    for name, value in (
        ("MLFLOW_HTTP_REQUEST_TIMEOUT", "20"),
        ("MLFLOW_DISABLE_TELEMETRY", "true"),
        ("GIT_PYTHON_REFRESH", "quiet"),
    ):
        os.environ.setdefault(name, value)
    import mlflow  # here: it takes a second, and reads the variables

    return mlflow.MlflowClient(tracking_uri=uri)


def experiment_of(client, uri: str, store: Path) -> str:
    found = client.get_experiment_by_name(EXPERIMENT)
    if found:
        return found.experiment_id
    # Beside the local database; a server knows for itself where files go.
    files = (store / "artifacts").resolve().as_uri() if uri.startswith("sqlite:") else None
    return client.create_experiment(EXPERIMENT, artifact_location=files)


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def accepted(name: str) -> str:
    """A parameter's or metric's name with what MLflow refuses in it as the number of its sign."""
    return re.sub(r"[^\w./ -]", lambda sign: f"_{ord(sign[0]):x}_", name)[:NAME]


def milliseconds(seconds: float) -> int:
    return int(1000 * seconds)


class Delivery:
    """One run on its way. `sent.json` beside it says how far it is."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.about = folder, read_json(folder / "run.json")
        self.sent: dict[str, Any] = (
            read_json(folder / "sent.json")
            if (folder / "sent.json").exists()
            else {"run": None, "parameters": False, "points": 0, "asked": []}
        )

    def _asked_before(self, what: str) -> bool:
        """Whether this was asked for already, and the answer may be what was lost."""
        before = self.sent.get("asked", [])
        if what not in before:
            self._note(asked=[*before, what])
        return what in before

    def _note(self, **changes: Any) -> None:
        self.sent |= changes
        write_json(self.sent, self.folder / "sent.json")

    def go_on(self, client, store: Path) -> bool:
        """Sends what there is; True once the run has ended and is all there."""
        ended = (self.folder / "end.json").exists()  # asked first: what comes after it is complete
        gone = not ended and not alive(self.about["process"])
        if not self.sent["run"]:
            self._open(client, experiment_of(client, self.about["uri"], store))
        if not self.sent["parameters"] and (self.folder / "parameters.json").exists():
            self._parameters(client)
        self._points(client)
        if not ended and not gone:
            return False
        if ended:
            self._close(client)
        else:
            client.set_terminated(self.sent["run"], status=STOPPED)
        shutil.rmtree(self.folder)
        return True

    def _open(self, client, experiment: str) -> None:
        tags = {
            "mlflow.source.name": self.about["name"],
            "mlflow.source.git.commit": self.about["revision"],
            "dvc.stage": self.about["name"],
            "dvc.experiment": self.about["experiment"],
            "dvc.baseline": self.about["baseline"],
            "dirty": self.about["dirty"],
            OUTBOX: self.about.get("id", self.folder.name),
        }
        tags = {name: str(value) for name, value in tags.items() if value is not None}
        name = (
            f"{self.about['name']} ({self.about['experiment']})"
            if self.about["experiment"]
            else self.about["name"]
        )
        run = self._opened(client, experiment, tags[OUTBOX])
        if run is None:
            run = client.create_run(
                experiment, start_time=milliseconds(self.about["started"]), run_name=name, tags=tags
            )
        self._note(run=run.info.run_id)

    def _opened(self, client, experiment: str, own: str) -> Any:
        """The run that an earlier request made although its answer was lost; None if there is
        none.
        """
        if not self._asked_before("run"):
            return None
        found = client.search_runs([experiment], f"tags.`{OUTBOX}` = '{own}'", max_results=1)
        return found[0] if found else None

    def _points(self, client) -> None:
        from mlflow.entities import Metric

        with (self.folder / "points.jsonl").open("rb") as file:
            file.seek(self.sent["points"])
            while True:
                # one that is being written waits
                lines = [
                    line for line in file.readlines(POINTS_AT_ONCE * 20) if line.endswith(b"\n")
                ]
                found = [
                    Metric(accepted(name), value, milliseconds(p["time"]), p["step"])
                    for p in map(json.loads, lines)
                    for name, value in p["values"].items()
                ]
                for first in range(0, len(found), POINTS_AT_ONCE):
                    client.log_batch(
                        self.sent["run"], metrics=found[first : first + POINTS_AT_ONCE]
                    )
                if not lines:
                    return
                self._note(points=self.sent["points"] + sum(map(len, lines)))
                file.seek(self.sent["points"])

    def _parameters(self, client) -> None:
        from mlflow.entities import Param

        found = [
            Param(accepted(name), str(value)[:VALUE])
            for name, value in flat(read_json(self.folder / "parameters.json"))
        ]
        for first in range(0, len(found), PARAMETERS_AT_ONCE):
            client.log_batch(self.sent["run"], params=found[first : first + PARAMETERS_AT_ONCE])
        self._note(parameters=True)

    def _close(self, client) -> None:
        from mlflow.entities import Metric

        end, run = read_json(self.folder / "end.json"), self.sent["run"]
        figures = [
            Metric(accepted(name.replace("@", "-")), float(value), milliseconds(end["ended"]), 0)
            for name, value in flat(end["figures"])
            if isinstance(value, (int, float))
        ]
        for first in range(0, len(figures), POINTS_AT_ONCE):
            client.log_batch(run, metrics=figures[first : first + POINTS_AT_ONCE])
        client.log_artifacts(run, str(self.folder / "files"))
        if (self.folder / "model" / "model.json").exists() and not self._has_model(client, run):
            self._model(run)
        client.set_terminated(run, status=end["status"], end_time=milliseconds(end["ended"]))

    def _has_model(self, client, run: str) -> bool:
        """Whether an earlier request, whose answer was lost, left the model whole; half of one is
        removed.
        """
        if not self._asked_before("model"):
            return False
        experiment = client.get_run(run).info.experiment_id
        found = [
            model
            for model in client.search_logged_models([experiment])
            if model.source_run_id == run
        ]
        whole = [model for model in found if str(model.status) == "READY"]
        for model in found:
            if model not in whole:
                client.delete_logged_model(model.model_id)
        return bool(whole)

    def _model(self, run: str) -> None:
        import mlflow

        at = self.folder / "model"
        model = read_json(at / "model.json")
        mlflow.set_tracking_uri(self.about["uri"])
        with mlflow.start_run(run_id=run):
            mlflow.pyfunc.log_model(
                name="model",
                python_model=str(at / "code" / model["script"]),
                artifacts={name: str(at / "artifacts" / name) for name in model["folders"]},
                code_paths=[str(at / "code" / "pipeline")],
                signature=mlflow.models.ModelSignature.from_dict(model["signature"]),
                pip_requirements=model["packages"],
                tags=model["tags"],
            )


class Sender:
    """Delivers the runs of one outbox; leaves servers and runs that failed alone for a while."""

    def __init__(self, store: Path) -> None:
        self.store, self.outbox = store, outbox_of(store)
        self.clients: dict[str, Any] = {}
        self.failed: dict[str, float] = {}  # server's URI, or folder of a run → when

    def waiting(self) -> list[Delivery]:
        """The runs that are to be gone on with, the oldest first."""
        found = []
        for about in sorted(self.outbox.glob("*/run.json")):
            if self._rests(about.parent.name):
                continue
            try:
                delivery = Delivery(about.parent)
            except InputError as error:
                self._give_up(about.parent.name, "the outbox", error)
                continue
            if not self._rests(delivery.about["uri"]):
                found.append(delivery)
        return found

    def _rests(self, what: str) -> bool:
        return time.monotonic() - self.failed.get(what, -AGAIN_AFTER) < AGAIN_AFTER

    def deliver(self) -> bool:
        """Goes on with every run; True if one could be."""
        went_on = False
        for delivery in self.waiting():
            uri = delivery.about["uri"]
            if self._rests(uri):  # since a moment ago
                continue
            try:
                if uri not in self.clients:
                    self.clients[uri] = client_of(uri)
                delivery.go_on(self.clients[uri], self.store)
                self._well(uri, delivery.folder.name)
                went_on = True
            # whatever MLflow raises: the run waits, and a person is told once
            except Exception as error:
                self._give_up(delivery.folder.name if self._answers(uri) else uri, uri, error)
        return went_on

    def _answers(self, uri: str) -> bool:
        try:
            self.clients[uri].search_experiments(max_results=1)
        except Exception:
            return False
        return True

    def _problem(self) -> dict[str, Any] | None:
        return read_json(self.outbox / PROBLEM) if (self.outbox / PROBLEM).exists() else None

    def _well(self, *what: str) -> None:
        """The server answers, and this run is no longer refused; another run's problem stays."""
        if (problem := self._problem()) and problem.get("what", problem["uri"]) in what:
            (self.outbox / PROBLEM).unlink(missing_ok=True)

    def _give_up(self, what: str, uri: str, error: Exception) -> None:
        self.failed[what] = time.monotonic()
        reason = " ".join(str(error).split())[:200]
        print(f"{what}: {reason}", flush=True)
        known = self._problem() or {"told": True}
        before = [*known.get("before", []), known.get("what")]
        if known["told"] and what not in before:
            problem = {"uri": uri, "what": what, "reason": reason, "told": False, "before": before}
            write_json(problem, self.outbox / PROBLEM)


def serve(store: Path, stay: float) -> None:
    """Delivers until there was nothing to do for `stay` seconds, unless another process is at
    it.
    """
    sender = Sender(store)
    sender.outbox.mkdir(parents=True, exist_ok=True)
    while True:
        with alone(sender.outbox) as nobody_else:
            if not nobody_else:
                return
            last = time.monotonic()
            while time.monotonic() - last <= stay and sender.outbox.is_dir():
                if sender.deliver():
                    last = time.monotonic()
                time.sleep(LOOK_EVERY)
        # One that was started while this one still held the lock has gone; its run must not be
        # left.
        if not sender.outbox.is_dir() or not sender.waiting():
            return


def main() -> None:
    cli = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cli.add_argument("store", type=Path, help="the checkout's tracking folder")
    cli.add_argument(
        "--stay", type=float, default=STAY, help="seconds to wait for more (default: %(default)s)"
    )
    args = cli.parse_args()
    if not args.store.is_dir():
        sys.exit(f"send: error: {args.store}: there is no such folder; a tracked stage makes it")
    serve(args.store, args.stay)


if __name__ == "__main__":
    main()
