"""What DVC, the records and MLflow cost on the demo: one `dvc repro` from nothing, taken apart.

    python perf/overhead.py [--small] [--rounds 15]

The repository's HEAD is cloned, and `dvc repro` runs in the clone with a `python` first on the path
that notes when every stage's process began and ended. DVC's share is what is left of the wall time:
reading dvc.yaml, hashing, caching, writing dvc.lock. What the records and the journal of tracked
runs cost inside a process is the median difference of a stage that does nothing, run with and
without them in turn, times the number of stages. The sender works beside the stages; all of its
processor time is counted, as if no core had been free for it.

The last line is JSON: `ratio` is the whole over what is left without the three, `share` the three
together in percent of the whole, then seconds of each. `--small` takes the tests' smaller world
(the same stages, fewer of them).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
SHIM = """#!/bin/sh
begun=$(date +%s.%N)
"{python}" "$@"
code=$?
echo "$begun $(date +%s.%N) $1" >> "{log}"
exit $code
"""
EMPTY = """
import sys
sys.path.insert(0, {root!r})
from pipeline.stage import run
run(lambda: ("nothing", {{}}, None), tracked={tracked})
"""


def sender_seconds(stop: threading.Event, found: dict[int, float]) -> None:
    """Processor time of every sender, until told to stop."""
    while not stop.wait(0.5):
        for process in psutil.process_iter(["pid", "cmdline", "cpu_times"]):
            if "pipeline.tracking.send" in (process.info["cmdline"] or []):
                found[process.info["pid"]] = (
                    process.info["cpu_times"].user + process.info["cpu_times"].system
                )


def seconds_of(command: list, folder: Path, environment: dict[str, str]) -> float:
    begun = time.perf_counter()
    subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env=environment,
        check=True,
        capture_output=True,
    )
    return time.perf_counter() - begun


def noting(folder: Path, rounds: int) -> dict[bool, float]:
    """Seconds that a record costs a stage, by whether it is tracked in MLflow too."""
    cost = {}
    for tracked in (False, True):
        script = folder / "empty.py"
        script.write_text(EMPTY.format(root=str(folder), tracked=tracked))
        plain = {
            k: v for k, v in os.environ.items() if k not in ("DVC_STAGE", "MLFLOW_TRACKING_URI")
        }
        watched = plain | {"DVC_STAGE": "empty", "DVC_ROOT": str(folder)}
        differences = []
        for _ in range(rounds):
            without = seconds_of([sys.executable, script], folder, plain)
            differences.append(seconds_of([sys.executable, script], folder, watched) - without)
        cost[tracked] = statistics.median(differences)
    return cost


def main() -> None:
    cli = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cli.add_argument("--small", action="store_true")
    cli.add_argument("--rounds", type=int, default=15)
    args = cli.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder, log = Path(temporary) / "clone", Path(temporary) / "processes"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
        if args.small:
            sys.path.insert(0, str(ROOT / "tests"))
            from small import make_small

            make_small(folder / "params.yaml")
        (folder / "dvc.lock").unlink()
        shim = Path(temporary) / "bin" / "python"
        shim.parent.mkdir()
        shim.write_text(SHIM.format(python=sys.executable, log=log))
        shim.chmod(0o755)
        environment = os.environ | {
            "PATH": f"{shim.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "DVC_NO_ANALYTICS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        environment.pop("MLFLOW_TRACKING_URI", None)
        senders, stop = {}, threading.Event()
        watcher = threading.Thread(target=sender_seconds, args=(stop, senders))
        watcher.start()
        whole = seconds_of(["dvc", "repro"], folder, environment)
        # what is still on its way counts, too
        while any((folder / "tracking" / "outbox").glob("*/run.json")):
            time.sleep(0.5)
        time.sleep(1)
        stop.set()
        watcher.join()
        processes = [line.split() for line in log.read_text().splitlines()]
        inside = sum(float(end) - float(begin) for begin, end, _ in processes)
        records = [
            json.loads(line)
            for line in (folder / "tracking" / "records.jsonl").read_text().splitlines()
        ]
        work = sum(record["seconds"] for record in records)
        tracked = sum(
            record["stage"].partition("@")[0]
            in ("metatrain", "tune", "tune_meta", "evaluate", "evaluate_meta", "zero_shot")
            for record in records
        )
        cost = noting(folder, args.rounds)
        (folder / "empty.py").unlink()
    parts = {
        "dvc": whole - inside,
        "records": cost[False] * (len(records) - tracked) + cost[True] * tracked,
        "sender": sum(senders.values()),
    }
    spent = sum(parts.values())
    print(
        f"{len(records)} stages, {tracked} of them tracked: {whole:.0f} s; the stages' own work "
        f"{work:.0f} s, start and imports of their processes "
        f"{inside - work - parts['records']:.0f} s"
    )
    for name, seconds in parts.items():
        print(f"{name:8} {seconds:6.1f} s  {100 * seconds / whole:4.1f}%")
    print(
        f"a record costs a stage {1000 * cost[False]:.0f} ms, with a run in MLflow "
        f"{1000 * cost[True]:.0f} ms"
    )
    print(
        json.dumps(
            {
                "ratio": round(whole / (whole - spent), 4),
                "share": round(100 * spent / whole, 2),
                "whole": round(whole, 1),
                "stages": len(records),
            }
            | {k: round(v, 2) for k, v in parts.items()}
        )
    )


if __name__ == "__main__":
    main()
