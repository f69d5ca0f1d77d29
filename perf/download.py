"""Time of the download stage against bare img2dataset, and what is fetched twice after a kill.

    python perf/download.py [--pictures 5000] [--rounds 3]

Both sides fetch the same small JPEGs from one loopback server (a process of its own) with the same
processes, threads, shard size and resizing. `ours` is `stages/download.py` as a whole: it starts
img2dataset, writes shards in key order without dates, and fetched.parquet. `bare` is the
img2dataset command. Wall clock from start to end of the command; the sides take turns, and who is
first alternates. Every round checks that both have the same pictures, byte by byte.

Then the stage is killed (SIGKILL) when a third of its shards are finished, and run again; the
server's log says which pictures of finished shards were asked for again.

The last line is JSON: `ratio` is the median over rounds of bare / ours in wall time, `ratio_cpu` in
processor seconds of all processes of a side (what to look at on a machine that others use too);
`refetched` counts those pictures.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import Pipe, Process
from pathlib import Path
from threading import Thread

import numpy as np
import pyarrow as pa
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pipeline.artifacts import write_table  # noqa: E402
from pipeline.pairs.schemas import CAPTIONS  # noqa: E402


def pictures(count: int, size: int) -> list[bytes]:
    """`count` different JPEGs; noise is enlarged, so that they weigh about what photographs of
    their size do.
    """
    rng, made = np.random.default_rng(0), []
    for _ in range(count):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (size // 4, size // 4, 3), dtype=np.uint8)).resize(
            (size, size)
        ).save(buffer, "JPEG")
        made.append(buffer.getvalue())
    return made


def serve(count: int, size: int, delay: float, pipe) -> None:
    """Answers /N.jpg; sends its port, then a Counter of asked pictures whenever it gets a
    message, and counts anew.
    """
    content, asked = pictures(count, size), []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            number = int(self.path[1:-4])
            asked.append(number)
            time.sleep(delay)
            self.send_response(200)
            self.send_header("Content-Length", str(len(content[number])))
            self.end_headers()
            self.wfile.write(content[number])

        def log_message(self, *_):
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 1024
        daemon_threads = True

        def handle_error(self, *_):
            """Clients are killed on purpose here."""

    server = Server(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    pipe.send(server.server_address[1])
    while pipe.recv():
        pipe.send(Counter(asked))
        asked.clear()


def clocks() -> np.ndarray:
    """Wall seconds, and processor seconds of all processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return np.array([time.perf_counter(), used.ru_utime + used.ru_stime])


def timed(command: list, environment: dict) -> np.ndarray:
    started = clocks()
    done = subprocess.run(
        [str(c) for c in command],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{command}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return clocks() - started


def contents(folder: Path) -> dict[str, bytes]:
    """caption → picture; the captions tell the pictures apart, and both sides write them."""
    found = {}
    for shard in sorted(folder.glob("*.tar")):
        with tarfile.open(shard) as tar:
            files = {member.name: tar.extractfile(member).read() for member in tar}
        found |= {
            files[name[:-3] + "txt"].decode(): content
            for name, content in files.items()
            if name.endswith(".jpg")
        }
    return found


def main() -> None:
    cli = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cli.add_argument("--pictures", type=int, default=5000)
    cli.add_argument("--size", type=int, default=128, help="pixels of a side")
    cli.add_argument(
        "--image-size", type=int, default=64, help="pixels of the shorter side in the shards"
    )
    cli.add_argument("--shard-rows", type=int, default=500)
    cli.add_argument("--processes", type=int, default=2)
    cli.add_argument("--threads", type=int, default=16)
    cli.add_argument(
        "--delay", type=float, default=0.005, help="seconds that the server waits before it answers"
    )
    cli.add_argument("--rounds", type=int, default=3)
    args = cli.parse_args()

    here, there = Pipe()
    server = Process(target=serve, args=(args.pictures, args.size, args.delay, there), daemon=True)
    server.start()
    base = f"http://127.0.0.1:{here.recv()}"

    def asked() -> Counter:
        here.send(True)
        return here.recv()

    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder)
        keys = [f"k{i:06d}" for i in range(args.pictures)]
        table = pa.table(
            [
                keys,
                [f"picture {i}" for i in range(args.pictures)],
                [f"{base}/{i}.jpg" for i in range(args.pictures)],
            ],
            schema=CAPTIONS,
        )
        write_table(table, top / "captions.parquet", CAPTIONS)
        (top / "source").mkdir()
        values = {
            "source": {
                "path": str(top / "source"),
                "table": "t.tsv",
                "obtain": None,
                "columns": None,
                "pictures": None,
                "bad_rows": "error",
            },
            "download": {
                "image_size": args.image_size,
                "shard_rows": args.shard_rows,
                "timeout": 30,
                "retries": 0,
                "private_addresses": True,
                "min_success": 1.0,
            },
        }
        (top / "params.yaml").write_text(json.dumps(values))  # JSON is YAML
        environment = os.environ | {
            "DOWNLOAD_PROCESSES": str(args.processes),
            "DOWNLOAD_THREADS": str(args.threads),
        }
        ours = [
            sys.executable,
            "stages/download.py",
            "--params",
            top / "params.yaml",
            "--captions",
            top / "captions.parquet",
            "--out",
            top / "shards",
        ]
        options = {
            "url_list": top / "captions.parquet",
            "input_format": "parquet",
            "url_col": "url",
            "caption_col": "caption",
            "output_folder": top / "bare",
            "output_format": "webdataset",
            "number_sample_per_shard": args.shard_rows,
            "image_size": args.image_size,
            "resize_mode": "keep_ratio",
            "resize_only_if_bigger": True,
            "skip_reencode": True,
            "extract_exif": False,
            "timeout": 30,
            "retries": 0,
            "processes_count": args.processes,
            "thread_count": args.threads,
            "enable_wandb": False,
        }
        bare = [
            Path(sys.executable).with_name("img2dataset"),
            *(f"--{k}={v}" for k, v in options.items()),
        ]

        ratios = []
        for number in range(args.rounds):
            seconds = {}
            for name, command in [("ours", ours), ("bare", bare)][:: 1 if number % 2 == 0 else -1]:
                shutil.rmtree(top / ("shards" if name == "ours" else "bare"), ignore_errors=True)
                seconds[name] = timed(command, environment)
                if (found := asked()) != Counter(range(args.pictures)):
                    sys.exit(
                        f"{name}: {len(found)} of {args.pictures} pictures asked for, "
                        f"{found.total()} requests"
                    )
            mine, theirs = contents(top / "shards"), contents(top / "bare")
            if mine != theirs or len(mine) != args.pictures:
                sys.exit(f"the sides differ: {len(mine)} and {len(theirs)} pictures")
            ratios.append(seconds["bare"] / seconds["ours"])
            both = {
                name: f"{wall:.1f} s ({cpu:.1f} s of processor)"
                for name, (wall, cpu) in seconds.items()
            }
            print(
                f"round {number + 1}: ours {both['ours']}, bare {both['bare']}, ratio "
                f"{ratios[-1][0]:.3f} ({ratios[-1][1]:.3f}); {len(mine)} pictures, all the "
                "same",
                flush=True,
            )

        reference = {p.name: p.read_bytes() for p in (top / "shards").iterdir()}
        shutil.rmtree(top / "shards")
        shards = -(-args.pictures // args.shard_rows)
        child = subprocess.Popen(
            [str(c) for c in ours],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        finished: set[str] = set()
        while len(finished) < max(1, shards // 3) and child.poll() is None:
            time.sleep(0.05)
            finished = {p.name[:5] for p in (top / ".partial").glob("shards-*/raw/*_stats.json")}
        child.send_signal(signal.SIGKILL)
        child.wait()
        time.sleep(3)  # what was under way when the downloader noticed still reaches the server
        finished = {p.name[:5] for p in (top / ".partial").glob("shards-*/raw/*_stats.json")}
        first = asked()
        timed(ours, environment)
        again = asked()
        done = {i for i in range(args.pictures) if f"{i // args.shard_rows:05d}" in finished}
        refetched = sum(again[i] for i in done)
        same = {p.name: p.read_bytes() for p in (top / "shards").iterdir()} == reference
        print(
            f"killed with {len(finished)} of {shards} shards finished after {first.total()} "
            f"requests; the second run made {again.total()}, {refetched} of them for the "
            f"{len(done)} pictures of finished shards; the shards are "
            f"{'the same bytes as without a kill' if same else 'DIFFERENT'}"
        )
    here.send(False)
    server.join()
    wall, cpu = np.transpose(ratios)
    figures = {
        "ratio": np.median(wall),
        "least": min(wall),
        "most": max(wall),
        "ratio_cpu": np.median(cpu),
    }
    print(
        json.dumps(
            {name: round(float(value), 3) for name, value in figures.items()}
            | {"refetched": refetched, "resumed_same": same}
        )
    )


if __name__ == "__main__":
    main()
