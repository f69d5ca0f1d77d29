"""Throughput of the episode reader against `webdataset`, and what writing episodes costs.

    python perf/episodes.py [--tasks 60] [--rounds 5]

Both sides hold the same pictures (256 × 256 JPEGs of about 20 kB) with the same features, labels,
names and roles, in the same order, and give the same tasks; that is checked first.

* `ours`: Parquet shards as the `episodes` stage writes them, read by
  `pipeline.episodes.shards.read_episodes`.
* `webdataset`: tar shards of the same size with `.jpg`, `.npy` (float16 feature), `.cls` and `.txt`
  for every picture, read by the `webdataset` library in this process, grouped into tasks.

Three ways to read: features alone (what textual methods need; a tar must be read through anyway),
features and JPEG bytes, and features and decoded pictures (224 pixels, normalised): one thread on
both sides, then with `ours` decoding in threads as meta-training does (`webdataset` decodes in its
loader's workers, which are not used).

Writing runs in a process of its own for each number of tasks and threads, from tar shards of 4,000
pictures, the fastest of three runs; its peak memory is `ru_maxrss`. The last line is JSON; `ratio`
is features and JPEG bytes.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import webdataset
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from tqdm import tqdm

from pipeline.ahead import ahead
from pipeline.clip.backbone import open_picture
from pipeline.episodes import shards
from pipeline.episodes.shards import Episode, read_episodes, write_shards
from pipeline.episodes.tasks import Drawing, Pool, sample_tasks
from pipeline.pairs.reading import locate_pictures

TOPICS, DOMAINS, PICTURES, PER_TAR, DIM = 40, 4, 4000, 1000, 512
SIZES = {"ways": 16, "shots": 4, "queries": 8}
PER_TASK = 16 * (4 + 8)
DECODED = 8  # tasks: decoding is slow and alike on both sides
VIEW = image_transform_v2(PreprocessCfg(size=224), is_train=False)


def silent(items, label, total=None):
    return tqdm(items, total=total, disable=True)


def jpeg(number: int) -> bytes:
    """Soft colours under fine noise: a photograph's size and cost of decoding."""
    random = np.random.default_rng(number)
    soft = Image.fromarray(random.integers(0, 255, (32, 32, 3), dtype=np.uint8)).resize(
        (256, 256), Image.Resampling.BICUBIC
    )
    file = io.BytesIO()
    Image.fromarray(
        (np.asarray(soft) + random.normal(0, 4, (256, 256, 3))).clip(0, 255).astype(np.uint8)
    ).save(file, "JPEG", quality=88)
    return file.getvalue()


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


def write_pictures(folder: Path) -> None:
    """The shards that a download leaves."""
    folder.mkdir()
    for first in range(0, PICTURES, PER_TAR):
        with tarfile.open(
            folder / f"{first // PER_TAR:05d}.tar", "w", format=tarfile.USTAR_FORMAT
        ) as tar:
            for number in range(first, first + PER_TAR):
                add(tar, f"{number:07d}.jpg", jpeg(number))


def drawn(tasks: int, folder: Path) -> tuple:
    """What `write_shards` takes: tasks, a pool, and the reader of its pictures."""
    random = np.random.default_rng(0)
    topic, domain = np.arange(PICTURES) % TOPICS, np.arange(PICTURES) // TOPICS % DOMAINS
    keys = [f"{number:07d}" for number in range(PICTURES)]
    pool = Pool(
        topic,
        domain,
        [f"topic {t}" for t in range(TOPICS)],
        keys,
        random.normal(size=(PICTURES, DIM)).astype(np.float16),
    )
    nearest = np.tile(np.arange(TOPICS), (TOPICS, 1))
    found = sample_tasks(
        topic,
        domain,
        nearest,
        Drawing(tasks=tasks, **SIZES, one_domain=True, confusable=0.0, seed=1),
    )
    return (
        found,
        pool,
        locate_pictures(
            folder,
            keys,
            [f"{n // PER_TAR:05d}.tar" for n in range(PICTURES)],
            np.arange(PICTURES),
            silent,
        ).read,
    )


def write_peer(episodes: Path, out: Path, per_tar: int) -> list[str]:
    """The same pictures as webdataset shards of as many tasks."""
    out.mkdir()
    paths = []
    for number, task in enumerate(read_episodes(episodes, pictures=True)):
        if number % per_tar == 0:
            paths.append(str(out / f"{number // per_tar:05d}.tar"))
        with tarfile.open(paths[-1], "a", format=tarfile.USTAR_FORMAT) as tar:
            for role in ("support", "query"):
                for place, (picture, feature, label) in enumerate(
                    zip(*(getattr(task, role + part) for part in ("_pictures", "", "_labels")))
                ):
                    file = io.BytesIO()
                    np.save(file, feature.astype(np.float16))
                    stem = f"{number:06d}_{role}_{place:04d}"
                    for kind, content in (
                        ("jpg", picture),
                        ("npy", file.getvalue()),
                        ("cls", str(label).encode()),
                        ("txt", task.names[label].encode()),
                    ):
                        add(tar, f"{stem}.{kind}", content)
    return paths


def peer(paths: list[str], kinds: tuple[str, ...]) -> Iterator[Episode]:
    """Tasks from webdataset shards; `kinds`: what is taken of every picture beside feature,
    label and name.
    """
    samples = (
        webdataset.WebDataset(paths, shardshuffle=False, empty_check=False)
        .decode()
        .to_tuple("__key__", "npy", "cls", "txt", *kinds)
    )
    waiting = []
    for sample in samples:
        waiting.append(sample)
        if len(waiting) == PER_TASK:
            split = sum("_support_" in s[0] for s in waiting)
            sides = [
                (
                    np.stack([s[1] for s in part]).astype(np.float32),
                    np.array([s[2] for s in part]),
                    tuple(s[4] for s in part) if kinds else (),
                )
                for part in (waiting[:split], waiting[split:])
            ]
            names = {s[2]: s[3] for s in waiting}
            (support, support_labels, support_pictures), (query, query_labels, query_pictures) = (
                sides
            )
            yield Episode(
                int(waiting[0][0].split("_")[0]),
                tuple(names[k] for k in sorted(names)),
                support,
                support_labels,
                query,
                query_labels,
                support_pictures,
                query_pictures,
            )
            waiting = []


def view(picture: bytes) -> torch.Tensor:
    return VIEW(open_picture(picture))


def decoded(tasks: Iterator[Episode], each: Callable = map) -> Iterator[torch.Tensor]:
    """(n, 3, 224, 224) of every task's pictures."""
    for task in tasks:
        yield torch.stack(list(each(view, task.support_pictures + task.query_pictures)))


def threaded(tasks: Iterator[Episode], threads: int) -> Iterator[torch.Tensor]:
    """As meta-training does it."""
    with ThreadPoolExecutor(threads) as pool:
        yield from ahead(decoded(tasks, pool.map), 2)


def same(a: Episode, b: Episode) -> bool:
    arrays = ("support", "support_labels", "query", "query_labels")
    return (a.number, a.names, a.support_pictures, a.query_pictures) == (
        b.number,
        b.names,
        b.support_pictures,
        b.query_pictures,
    ) and all(np.array_equal(getattr(a, n), getattr(b, n)) for n in arrays)


def seconds(make: Callable[[], Iterator]) -> float:
    began = time.perf_counter()
    for _ in make():
        pass
    return time.perf_counter() - began


def compare(name: str, ours: Callable, theirs: Callable, pictures: int, rounds: int) -> float:
    """Both in turn, the first round to warm up; median ratio over the others."""
    times = [(seconds(ours), seconds(theirs)) for _ in range(rounds + 1)][1:]
    ratios = [b / a for a, b in times]
    rate = [pictures / statistics.median(side) for side in zip(*times)]
    ratio = statistics.median(ratios)
    print(
        f"{name}: ours {rate[0]:,.0f} pictures/s, webdataset {rate[1]:,.0f}; ratio {ratio:.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f})",
        flush=True,
    )
    return ratio


def write_alone(folder: Path, out: Path, tasks: int) -> None:
    """In a process of its own: writes, and prints seconds, bytes, and peak memory in MiB before
    and after.
    """
    taken = drawn(tasks, folder)
    out.mkdir()
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, time.perf_counter()
    write_shards(taken[0], taken[1], taken[2], out, silent)
    print(
        json.dumps(
            [
                time.perf_counter() - began,
                sum(p.stat().st_size for p in out.iterdir()),
                before,
                resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            ]
        )
    )


def measure_writing(folder: Path, top: Path, tasks: int, rounds: int) -> list[dict[str, float]]:
    """One and two threads in turn; the fastest run of each."""
    runs: dict[int, list] = {1: [], 2: []}
    for turn in range(rounds):
        for threads, found in runs.items():
            out = top / f"written_{tasks}_{threads}_{turn}"
            command = [sys.executable, __file__, "--write", str(folder), str(out), str(tasks)]
            done = subprocess.run(
                command,
                check=True,
                capture_output=True,
                text=True,
                env=os.environ | {"EPISODE_THREADS": str(threads), "OMP_NUM_THREADS": "1"},
            )
            found.append(json.loads(done.stdout.splitlines()[-1]))
            shutil.rmtree(out)
    rows = []
    for threads, found in runs.items():
        took, size, before, after = min(found)
        print(
            f"writing {tasks} tasks, {threads} thread(s): {took:.2f} s, "
            f"{tasks * PER_TASK / took:,.0f} pictures/s, {size / 1e6:.0f} MB; peak "
            f"{after:.0f} MiB, {after - before:.0f} of them for writing",
            flush=True,
        )
        rows.append(
            {
                "tasks": tasks,
                "threads": threads,
                "seconds": round(took, 3),
                "peak_MiB": round(after),
                "writing_MiB": round(after - before),
            }
        )
    return rows


def main() -> None:
    cli = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cli.add_argument("--tasks", type=int, default=60)
    cli.add_argument("--rounds", type=int, default=5)
    cli.add_argument("--threads", type=int, default=os.cpu_count(), help="that decode on our side")
    cli.add_argument(
        "--write", nargs=3, metavar=("PICTURES", "OUT", "TASKS"), help=argparse.SUPPRESS
    )
    args = cli.parse_args()
    shards.SHARD_BYTES = 64e6  # several shards of both kinds
    torch.set_num_threads(1)
    if args.write:
        return write_alone(Path(args.write[0]), Path(args.write[1]), int(args.write[2]))
    with tempfile.TemporaryDirectory() as temporary:
        top = Path(temporary)
        write_pictures(top / "pictures")
        # First: a process inherits the peak of the one that starts it, and this one is still small.
        writing = [
            row
            for count in (60, 240)
            for row in measure_writing(top / "pictures", top, count, min(3, args.rounds))
        ]
        (top / "ours").mkdir()
        tasks, pool, read = drawn(args.tasks, top / "pictures")
        write_shards(tasks, pool, read, top / "ours", silent)
        paths = write_peer(top / "ours", top / "peer", shards.tasks_per_shard(tasks, pool, read))
        pairs = list(
            zip(read_episodes(top / "ours", pictures=True), peer(paths, ("jpg",)), strict=True)
        )
        assert len(pairs) == args.tasks and all(same(a, b) for a, b in pairs), (
            "the two sides give different tasks"
        )
        del pairs
        pictures = args.tasks * PER_TASK
        print(
            f"{args.tasks} tasks of {PER_TASK} pictures, {len(list((top / 'ours').iterdir()))} "
            f"and {len(paths)} shards, all in the page cache"
        )
        few = DECODED * PER_TASK
        mine, theirs = (
            (lambda: islice(read_episodes(top / "ours", True), DECODED)),
            (lambda: islice(peer(paths, ("jpg",)), DECODED)),
        )
        found = {
            "ratio_features": compare(
                "features alone",
                lambda: read_episodes(top / "ours"),
                lambda: peer(paths, ()),
                pictures,
                args.rounds,
            ),
            "ratio": compare(
                "features and JPEG bytes",
                lambda: read_episodes(top / "ours", True),
                lambda: peer(paths, ("jpg",)),
                pictures,
                args.rounds,
            ),
            "ratio_decoded": compare(
                "features and decoded pictures, one thread each",
                lambda: decoded(mine()),
                lambda: decoded(theirs()),
                few,
                args.rounds,
            ),
            "ratio_decoded_threads": compare(
                f"the same, {args.threads} decoding threads on our side",
                lambda: threaded(mine(), args.threads),
                lambda: decoded(theirs()),
                few,
                args.rounds,
            ),
        }
    print(
        json.dumps({name: round(value, 3) for name, value in found.items()} | {"writing": writing})
    )


if __name__ == "__main__":
    main()
