"""Where the independent pieces of a stage's work run: in this process, or on the machines of a Ray
cluster.

ENGINE is `local` (the default) or `ray`. It is no parameter: artifacts are the same bytes either
way, so another engine must not make anything stale. RAY_ADDRESS names the cluster; without it Ray
takes the cores of this machine. docs/scale.md says what a cluster's machines must have in common.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

from pipeline.errors import InputError, require
from pipeline.stage import workers

Item = TypeVar("Item", int, str)

ROOT = Path(__file__).resolve().parents[1]
PASSED_ON = ("DECODE_THREADS", "DETERMINISTIC", "DEVICE", "HF_HUB_OFFLINE", "PICTURES_AT_ONCE")


def on_ray() -> bool:
    """Whether ENGINE asks for Ray. Raises InputError if it is no engine, or Ray is not
    installed.
    """
    engine = os.environ.get("ENGINE", "local")
    if engine not in ("local", "ray"):
        raise InputError(f"environment variable ENGINE is '{engine}'; it is 'local' or 'ray'")
    if engine == "ray":
        require("ray", "ray", "environment variable ENGINE is 'ray'")
    return engine == "ray"


def threads() -> int:
    """Threads of one worker. Matrix products may depend on it in the last bits, so workers
    elsewhere get as many as there are here.
    """
    return workers("OMP_NUM_THREADS")


def _check_address(address: str) -> None:
    host, _, port = address.rpartition("/")[2].rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, ValueError, OverflowError) as error:
        raise InputError(
            f"environment variable RAY_ADDRESS is '{address}', but no Ray cluster answers there "
            f"({error}); it is host:port, as `ray start --head` prints it"
        ) from None


@contextmanager
def cluster(environment: dict[str, str] | None = None, hook: str | None = None) -> Iterator[None]:
    """Connects to the Ray cluster, or starts one on this machine; takes its leave at the end.

    Args:
        environment: variables for the workers, beside those that all have. hook:
        `package.module.function` that every worker process calls before its first task; where it
            cannot be called, no task runs.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # workers that are lost are reported all the same
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    variables = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    variables |= {"PYTHONPATH": path, "OMP_NUM_THREADS": str(threads())} | (environment or {})
    runtime: dict[str, Any] = {"env_vars": variables} | (
        {"worker_process_setup_hook": hook} if hook else {}
    )
    if address := os.environ.get("RAY_ADDRESS"):
        _check_address(address)  # Ray itself tries for minutes
    where: dict[str, Any] = (
        {"address": address} if address else {"address": "local", "include_dashboard": False}
    )
    import ray

    interrupt = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**where, runtime_env=runtime, log_to_driver=False, logging_level=logging.ERROR)
        # Ray sets its own, which ends the process where it stands
        signal.signal(signal.SIGTERM, interrupt)
        yield
    finally:
        ray.shutdown()


class _Worker:
    """What a Ray actor holds: one `work`, built when the first item comes."""

    def __init__(self, build: Callable[[], Callable[[Any], pa.Table]], folder: str):
        self.build = build
        self.work: Callable[[Any], pa.Table] | None = None
        os.chdir(folder)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        try:
            self.work = self.work or self.build()
            table = self.work(row["item"])
        # bad input is bad on every machine: no retry, and the stage's own message
        except InputError as error:
            return {"number": row["number"], "table": b"", "error": str(error)}
        with pa.BufferOutputStream() as sink:
            with pa.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(table)
            return {"number": row["number"], "table": sink.getvalue().to_pybytes(), "error": ""}


def _workers(needs: dict[str, int], most: int) -> int:
    """How many workers the cluster has room for, up to `most`."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    room = sum(
        min(int(node.get(kind, 0) // amount) for kind, amount in needs.items()) for node in nodes
    )
    if not room:
        largest = max((int(node.get("CPU", 0)) for node in nodes), default=0)
        raise InputError(
            f"a worker takes {' and '.join(f'{n} {kind}' for kind, n in needs.items())}, as many "
            "threads as here, but no machine of the Ray cluster has that (the largest has "
            f"{largest} CPU); set OMP_NUM_THREADS to that or less"
        )
    return min(room, most)


def _on_ray(
    build: Callable[[], Callable[[Item], pa.Table]], items: list[Item], gpu: bool
) -> Iterator[tuple[Item, pa.Table]]:
    import ray
    from ray.data import ActorPoolStrategy, DataContext

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    DataContext.get_current().enable_progress_bars = False
    needs, on_cuda = {"CPU": threads()}, os.environ.get("DEVICE", "cuda").startswith("cuda")
    if gpu and on_cuda and ray.cluster_resources().get("GPU"):
        needs["GPU"] = 1
    workers = _workers(needs, len(items))
    # One block per item, one item under way per worker: what is lost is lost once.
    rows = ray.data.from_items(
        [{"number": n, "item": item} for n, item in enumerate(items)],
        override_num_blocks=len(items),
    )
    pool = ActorPoolStrategy(min_size=workers, max_size=workers, max_tasks_in_flight_per_actor=1)
    for row in rows.map(
        _Worker,
        fn_constructor_args=(build, os.getcwd()),
        compute=pool,
        num_cpus=needs["CPU"],
        num_gpus=needs.get("GPU"),
    ).iter_rows():
        if row["error"]:
            raise InputError(row["error"])
        yield items[row["number"]], pa.ipc.open_stream(row["table"]).read_all()


def mapped(
    build: Callable[[], Callable[[Item], pa.Table]], items: list[Item], gpu: bool = False
) -> Iterator[tuple[Item, pa.Table]]:
    """(item, work(item)) for every item, in any order; `work` is what `build` returns.

    `build` is called once per worker: it loads the model. Under Ray, Ray Data repeats on another
    worker what a worker or machine had under way when it was lost; what was yielded stays the
    caller's.

    Args:
        build: a module's function or a `partial` of one, for it travels to the workers.
        gpu: workers take a GPU each if the cluster has any and DEVICE does not say otherwise.
    """
    if not items:
        return
    if not on_ray():
        work = build()
        yield from ((item, work(item)) for item in items)
    else:
        with cluster():
            yield from _on_ray(build, items, gpu)
