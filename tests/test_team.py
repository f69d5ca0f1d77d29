"""docs/team.md, command by command: two clones, one git repository, one remote; then what can go
wrong with sharing.
"""

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ENVIRONMENT, ROOT, clone, free_port, made_ready, run
from ruamel.yaml import YAML
from small import make_small

BLOCK = re.compile(r"<!-- (\w+): (\w+) -->\n```sh\n(.*?)```", re.S)
UNFINISHED = ("Queued", "Running")


def stages_run(text):
    """The stages that ran a command; the run cache's say so otherwise."""
    return re.findall(r"Running stage '([^']+)'", text)


def lock(folder):
    return YAML(typ="safe").load(folder / "dvc.lock")["stages"]


def runs(folder):
    """MLflow's runs of a checkout."""
    ask = """
import json, mlflow
client = mlflow.MlflowClient("sqlite:///tracking/mlflow.db")
found = client.search_runs([e.experiment_id for e in client.search_experiments()])
rows = [(r.info.run_name, r.info.status, r.data.params, r.data.metrics, r.data.tags) for r in found]
print(json.dumps([dict(zip(("name", "status", "params", "metrics", "tags"), row)) for row in rows]))
"""
    return json.loads(run(sys.executable, "-c", ask, cwd=folder).stdout.splitlines()[-1])


def wait_for_queue(folder):
    deadline = time.time() + 600
    while any(
        state in (status := run("dvc", "queue", "status", cwd=folder).stdout)
        for state in UNFINISHED
    ):
        assert time.time() < deadline, status
        time.sleep(1)
    return status


def wait_for_sender(folder):
    deadline = time.time() + 60
    while list((folder / "tracking" / "outbox").glob("*/run.json")):
        assert time.time() < deadline, (folder / "tracking" / "sender.log").read_text()[-3000:]
        time.sleep(0.5)


def fetch(folder):
    """`make fetch`, in an environment that is there already."""
    run("make", "fetch", cwd=made_ready(folder))


class Week:
    """What the page's commands printed, by their name, and where they ran."""

    def __init__(self, folder):
        self.folder, self.said = folder, {}
        self.origin, self.share = folder / "origin.git", folder / "share"
        self.places = {
            "ada": folder / "ada",
            "ben": folder / "ben" / "gram",
            "other": folder / "other",
        }

    def __call__(self, who, name, script):
        place = self.places[who]
        cwd = place if place.is_dir() else place.parent  # Ben begins with a clone
        cwd.mkdir(parents=True, exist_ok=True)
        # the page says to be inside the environment; `make` looks for its stamp
        if not place.is_dir():
            script = script.replace("cd gram\n", "cd gram\nmkdir -p .venv; touch .venv/.ready\n")
        done = run(
            "bash",
            "-euo",
            "pipefail",
            "-c",
            script,
            cwd=cwd,
            SHARE=self.share,
            ORIGIN=self.origin,
            COLUMNS="200",
            DVC_NO_ANALYTICS="1",
        )
        self.said[f"{who} {name}"] = done.stdout + done.stderr


@pytest.fixture(scope="module")
def week(tmp_path_factory):
    folder = tmp_path_factory.mktemp("week")
    week = Week(folder)
    ada = clone(week.places["ada"])
    make_small(ada / "params.yaml")
    (ada / "dvc.lock").unlink(missing_ok=True)
    made_ready(ada)
    run("git", "init", "--quiet", "--bare", "--initial-branch=main", week.origin, cwd=folder)
    run("git", "remote", "set-url", "origin", week.origin, cwd=ada)
    run("git", "checkout", "--quiet", "-B", "main", cwd=ada)
    run("git", "commit", "--quiet", "-am", "a small world", cwd=ada)
    week.places["other"].mkdir()
    for who, name, script in BLOCK.findall((ROOT / "docs" / "team.md").read_text()):
        week(who, name, script)
        if name == "sweep":
            week.said["queue"] = wait_for_queue(week.places[who])
    return week


def test_every_command_of_the_page_was_run(week):
    """All shell blocks before the section on S3 have a name, by which they were run."""
    page = (ROOT / "docs" / "team.md").read_text().partition("## S3")[0]
    assert page.count("```sh") == len(BLOCK.findall(page)) == 11


def test_a_second_clone_runs_nothing(week):
    assert (
        stages_run(week.said["ben clone"]) == []
        and "Data and pipelines are up to date" in week.said["ben clone"]
    )


def test_learning_needs_no_pictures_of_the_web(week):
    """Ben's experiments and merges ran meta-training to report without the web, its shards,
    features or topics.
    """
    ben = week.places["ben"]
    assert {p.name for p in (ben / "data").iterdir()} == {
        "batches",
        "benchmarks",
        "code",
        "episodes",
        "gallery.json",
        "metrics",
        "params.json",
        "published",
        "report",
        "scores",
        "starts",
        "tuned",
    }


def test_a_sweep_runs_side_by_side_each_with_its_own_runs(week):
    assert (
        week.said["queue"].count("Success") == 4
        and "4 experiments queued" in week.said["ben sweep"]
    )
    ben = week.places["ben"]
    wait_for_sender(ben)
    found = runs(ben)
    learned = {
        r["tags"]["dvc.experiment"]: r
        for r in found
        if r["name"].startswith("metatrain") and "dvc.experiment" in r["tags"]
    }
    assert {r["status"] for r in found} == {"FINISHED"}
    assert len(learned) >= 2  # two rates; the other draw's may come from the run cache
    for name, r in learned.items():
        of_experiment = run(
            "git", "show", f"{experiment_revision(ben, name)}:params.yaml", cwd=ben
        ).stdout
        assert float(r["params"]["inner_lr"]) == YAML(typ="safe").load(of_experiment)["inner_lr"]
        assert r["tags"]["dvc.baseline"] and r["tags"]["dvc.stage"] == "metatrain@coop_gram"
    assert {
        r["tags"]["dvc.experiment"] for r in found if r["name"].startswith("evaluate_meta")
    } >= {f"alpha-{i}" for i in (1, 2, 3, 4)}
    records = [
        json.loads(line) for line in (ben / "tracking" / "records.jsonl").read_text().splitlines()
    ]
    assert {r["experiment"] for r in records} >= {f"alpha-{i}" for i in (1, 2, 3, 4)}
    for r in records:
        assert (
            r["status"] == "FINISHED"
            and len(r["revision"]) == 40
            and r["libraries"]["torch"]
            and r["cores"]
            and r["python"]
        )


def results(folder, revision):
    """What the lock of a revision says of the figures."""
    locked = YAML(typ="safe").load(run("git", "show", f"{revision}:dvc.lock", cwd=folder).stdout)
    outs = locked["stages"]["report"]["outs"]
    return next(o["md5"] for o in outs if o["path"] == "data/metrics/results.json")


def experiment_revision(folder, name):
    refs = run("git", "for-each-ref", "--format=%(refname)", "refs/exps", cwd=folder).stdout.split()
    return next(r for r in refs if r.endswith(f"/{name}"))


def test_the_tables_are_readable(week):
    for name in ("ben look", "ada adopt"):
        said = week.said[name]
        assert (
            re.search(r"method +┃ inner_lr ┃ runs ┃ .*H", said)
            and re.search(r"coop_gram │ +0\.1 │ +2 │ .*±", said)
            and re.search(r"1\.0 │ +2 │ .*±", said)
        )
    shown = next(
        line
        for line in week.said["ben look"].splitlines()
        if "Experiment" in line and "Created" in line
    )
    columns = shown.split()
    assert {"inner_lr", "few_shot.seeds", "coop_gram.H"} <= set(columns) and len(columns) <= 14, (
        columns
    )


def test_taking_an_experiment_over_runs_nothing(week):
    said = week.said["ada adopt"]
    assert not stages_run(said) and re.search(r"params\.yaml +inner_lr ", said)
    ada = week.places["ada"]
    commit = run("git", "log", "--format=%H", "--grep=A larger inner step", cwd=ada).stdout.strip()
    figures = [results(ada, revision) for revision in (f"{commit}~1", commit)]
    # so small a world's may be equal: then `dvc metrics diff` says nothing
    assert ("data/metrics/results.json" in said) == (figures[0] != figures[1])
    page = next(
        Path(line.removeprefix("file://")) for line in said.split() if line.startswith("file://")
    )
    assert "query loss at adapted tokens" in page.read_text()


def test_repeating_a_shared_experiment_runs_nothing(week, tmp_path):
    run("git", "clone", "--quiet", week.origin, "third", cwd=tmp_path)
    third = tmp_path / "third"
    run(
        "git",
        "checkout",
        "--quiet",
        run("git", "log", "--format=%H", "--grep=First clusters", cwd=third).stdout.strip(),
        cwd=third,
    )
    fetch(third)
    done = run(
        "dvc",
        "exp",
        "run",
        "--pull",
        "--allow-missing",
        "-S",
        "inner_lr=1.0",
        "-S",
        "few_shot.seeds=[1]",
        cwd=third,
    )
    assert stages_run(done.stdout) == [] and done.stdout.count("is cached - skipping run") >= 4
    assert not (third / "tracking").exists()


ELSEWHERE = """
import json, sys, mlflow, pandas as pd
mlflow.set_tracking_uri(sys.argv[1])
client = mlflow.MlflowClient()
(experiment,) = [e for e in client.search_experiments() if e.name == "gram"]
(model,) = client.search_logged_models(
    [experiment.experiment_id], filter_string=f"tags.start = '{sys.argv[3]}'"
)
loaded = mlflow.pyfunc.load_model(model.model_uri)
import pipeline.gram.serving
pictures = pd.DataFrame({"picture": [open(p, "rb").read() for p in sys.argv[4:]]})
found = loaded.predict(pictures, params={"names": json.loads(sys.argv[2])})
refused = []
names = {"names": ["a", "b"]}
damaged, other = pd.DataFrame({"picture": [b"no picture"]}), pd.DataFrame({"other": [1]})
for frame, params in ((pictures, {}), (damaged, names), (other, names)):
    try:
        loaded.predict(frame, params=params)
    except Exception as error:
        refused.append(str(error))
print(json.dumps({
    "found": found.to_dict("list"),
    "code": pipeline.gram.serving.__file__,
    "signature": str(loaded.metadata.signature),
    "refused": refused,
}))
"""


def test_the_meta_learned_prompt_is_a_model_that_predicts_elsewhere(week, tmp_path):
    """From MLflow's store alone, without the project, the same as the pipeline's own prompt
    says.
    """
    import io
    import zipfile

    import torch
    from PIL import Image

    from pipeline.clip.backbone import image_features, load_backbone
    from pipeline.prompts.starts import digest_of, load_start, method_of

    ada = week.places["ada"]
    wait_for_sender(ada)
    with zipfile.ZipFile(ada / "data" / "world" / "animals.zip") as archive:
        files = [n for n in archive.namelist() if n.startswith("test/") and not n.endswith("/")][
            ::29
        ]
        names = sorted(
            {
                n.split("/")[2]
                for n in archive.namelist()
                if n.startswith("test/") and n.count("/") == 3
            }
        )
        contents = [archive.read(n) for n in files]
    for i, content in enumerate(contents):
        (tmp_path / f"{i}.jpg").write_bytes(content)
    done = run(
        sys.executable,
        "-c",
        ELSEWHERE,
        f"sqlite:///{ada}/tracking/mlflow.db",
        json.dumps(names),
        digest_of(ada / "data" / "starts" / "coop_gram"),
        *(tmp_path / f"{i}.jpg" for i in range(len(files))),
        cwd=tmp_path,
    )
    said = json.loads(done.stdout.splitlines()[-1])
    start, backbone = (
        load_start(ada / "data" / "starts" / "coop_gram"),
        load_backbone(ROOT / "demo" / "backbone"),
    )
    method = method_of(start.about, backbone, "a photo of a {}.")
    features = image_features(
        backbone, [backbone.test_view(Image.open(io.BytesIO(c)).convert("RGB")) for c in contents]
    )
    with torch.no_grad():
        chances = method.logits(
            {k: v[None] for k, v in start.theta.items()}, method.prepare([names]), features[None]
        )[0].softmax(-1)
    assert said["found"]["label"] == [names[i] for i in chances.argmax(-1).tolist()]
    assert said["found"]["probability"] == pytest.approx(chances.max(-1).values.tolist(), abs=1e-4)
    assert (
        str(ROOT) not in said["code"]
        and "'picture': binary" in said["signature"]
        and "names" in said["signature"]
    )
    assert (
        len(said["refused"]) == 3
        and "at least two" in said["refused"][0]
        and "row 0" in said["refused"][1]
        and "picture" in said["refused"][2]
    )


def lock_of(folder, revision):
    text = run("git", "show", f"{revision}:dvc.lock", cwd=folder).stdout
    return YAML(typ="safe").load(text)["stages"]


def test_coarser_topics_start_at_topics(week):
    """What ran is what has other inputs than before, whatever topics this processor finds."""
    ada = week.places["ada"]
    ran = set(stages_run(week.said["ada branch"]))
    before, after = lock_of(ada, "coarser~1"), lock_of(ada, "coarser")
    inputs = lambda stage: (stage["cmd"], stage.get("deps"), stage.get("params"))
    assert ran == {name for name in after if inputs(after[name]) != inputs(before[name])}
    assert {"topics", "label"} <= ran  # topics of less than twenty captions are gone
    assert not ran & {"captions", "download", "index", "features", "filter", "embed"}
    assert not ran & {"benchmark@animals", "tune@animals-coop-1"}


def test_a_merge_of_different_stages_needs_no_hands(week):
    assert stages_run(week.said["ben branch"]) == ["params", "report"]
    said = week.said["ben merge"]
    assert "CONFLICT" not in said and "stages ran on both sides (params, report)" in said
    assert stages_run(said) == ["params", "report"]
    merged = YAML(typ="safe").load(week.places["ada"] / "params.yaml")
    assert merged["topics"]["min_cluster_size"] == 20 and merged["report"]["resamples"] == 4000


def test_git_alone_would_not_have_merged_it(week, tmp_path):
    """What the driver is for: the same merge as text."""
    run("git", "clone", "--quiet", week.origin, "plain", cwd=tmp_path)
    plain = tmp_path / "plain"
    branch = run("git", "log", "--format=%H", "--grep=Narrower noise", cwd=plain).stdout.strip()
    run("git", "checkout", "--quiet", branch, cwd=plain)
    done = run("git", "merge", "--no-edit", "origin/coarser", cwd=plain, check=False)
    assert done.returncode and "CONFLICT" in done.stdout and "dvc.lock" in done.stdout


def test_others_take_artifacts_by_name(week):
    other = week.places["other"]
    import polars as pl

    assert {p.name for p in (other / "start").iterdir()} == {
        "prompt.safetensors",
        "regulator.safetensors",
        "curve.csv",
    }
    assert (other / "start" / "prompt.safetensors").read_bytes() == (
        week.places["ada"] / "data" / "starts" / "coop_gram" / "prompt.safetensors"
    ).read_bytes()
    assert "topic" in pl.read_parquet(other / "clusters.parquet").columns
    assert list((other / "episodes").glob("*.parquet"))
    named = YAML(typ="safe").load(ROOT / "dvc.yaml")["artifacts"]
    outs = [
        o["path"]
        for stage in YAML(typ="safe").load(ROOT / "dvc.lock")["stages"].values()
        for o in stage["outs"]
    ]
    assert {entry["path"] for entry in named.values()} <= set(outs)


def test_what_is_shared_is_enough_from_meta_training_to_report(week, tmp_path):
    """All that was downloaded or drawn is gone, here and in the cache; the learning runs anew,
    from what the remote has.
    """
    run("git", "clone", "--quiet", week.origin, "bare", cwd=tmp_path)
    folder = tmp_path / "bare"
    of_web = [
        o
        for name in ("draw_web@demo", "download", "draw_benchmark@animals")
        for o in lock(folder)[name]["outs"]
    ]
    share = tmp_path / "share"
    shutil.copytree(week.share, share)
    for out in of_web:
        digest = out["md5"]
        if digest.endswith(".dir"):
            listing = share / "files" / "md5" / digest[:2] / digest[2:]
            for entry in json.loads(listing.read_text()):
                (share / "files" / "md5" / entry["md5"][:2] / entry["md5"][2:]).unlink(
                    missing_ok=True
                )
        (share / "files" / "md5" / digest[:2] / digest[2:]).unlink()
    run("dvc", "remote", "modify", "--local", "team", "url", share, cwd=folder)
    fetch(folder)
    text = (folder / "params.yaml").read_text()
    (folder / "params.yaml").write_text(text.replace("meta_steps: 20", "meta_steps: 12"))
    done = run("dvc", "repro", "--pull", "--allow-missing", cwd=folder)
    assert stages_run(done.stdout) == [
        "params",
        "metatrain@coop_gram",
        "tune_meta@animals-coop_gram-1",
        "evaluate_meta@coop_gram",
        "publish@coop_gram",
        "report",
    ]
    assert (folder / "data" / "report" / "report.html").stat().st_size > 1e6 and not (
        folder / "data" / "shards"
    ).exists()


# --- when something is wrong ---


@pytest.fixture
def ada(week, tmp_path):
    """A copy of Ada's state after the week that a test may spoil, with its own cache and remote."""
    folder = tmp_path / "ada"
    run("git", "clone", "--quiet", week.origin, folder, cwd=tmp_path)
    shutil.copytree(week.share, tmp_path / "share")
    run("dvc", "remote", "modify", "--local", "team", "url", tmp_path / "share", cwd=folder)
    return folder


def object_of(store, folder, path):
    """Where a store keeps an output that is one file."""
    digest = next(
        o["md5"] for stage in lock(folder).values() for o in stage["outs"] if o["path"] == path
    )
    return store / digest[:2] / digest[2:]


def flip(path):
    """One bit, in place; the file looks as untouched as it did."""
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)
    path.chmod(before.st_mode)


def test_a_remote_that_is_not_there(ada, tmp_path):
    run("dvc", "pull", "data/topics.parquet", cwd=ada)
    run("dvc", "remote", "modify", "--local", "team", "url", tmp_path / "gone", cwd=ada)
    done = run("dvc", "pull", "data/labels.parquet", cwd=ada, check=False)
    assert (
        done.returncode and "data/labels.parquet" in done.stderr and "Traceback" not in done.stderr
    )
    (tmp_path / "file").write_text("no folder")
    run("dvc", "remote", "modify", "--local", "team", "url", tmp_path / "file" / "share", cwd=ada)
    done = run("dvc", "push", "data/topics.parquet", cwd=ada, check=False)
    assert (
        done.returncode
        and str(tmp_path / "file" / "share") in done.stderr
        and "Traceback" not in done.stderr
    )


def test_a_damaged_file_in_the_remote_is_refused(ada, tmp_path):
    flip(object_of(tmp_path / "share" / "files" / "md5", ada, "data/topics.parquet"))
    done = run("dvc", "pull", "data/topics.parquet", cwd=ada, check=False)
    assert (
        done.returncode
        and "data/topics.parquet" in done.stderr
        and not (ada / "data" / "topics.parquet").exists()
    )


def test_a_damaged_file_in_the_cache_is_noticed_and_restored(ada):
    """By whoever reads it, and by `make verify`, after which DVC fetches it again."""
    from pipeline.artifacts import read_table
    from pipeline.clustering.schemas import TOPICS
    from pipeline.errors import InputError

    run("dvc", "pull", "topics", cwd=ada)
    assert (
        "all as their names say"
        in run(sys.executable, "-m", "pipeline.verify_cache", cwd=ada).stdout
    )
    whole = (ada / "data" / "topics.parquet").read_bytes()
    damaged = object_of(ada / ".dvc" / "cache" / "files" / "md5", ada, "data/topics.parquet")
    flip(damaged)
    assert (ada / "data" / "topics.parquet").read_bytes() != whole  # the same file, by a link
    with pytest.raises(InputError, match="data/topics.parquet: damaged"):
        read_table(ada / "data" / "topics.parquet", TOPICS)
    done = run(sys.executable, "-m", "pipeline.verify_cache", cwd=ada, check=False)
    assert done.returncode == 1 and "data/topics.parquet" in done.stderr and not damaged.exists()
    run("dvc", "pull", "--force", "data/topics.parquet", cwd=ada)
    assert (ada / "data" / "topics.parquet").read_bytes() == whole
    assert (
        "all as their names say"
        in run(sys.executable, "-m", "pipeline.verify_cache", cwd=ada).stdout
    )


# --- S3 ---

FORWARD = """
import socket, sys, threading
front, back, limit = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
passed, lock = 0, threading.Lock()
def copy(source, target):
    global passed
    try:
        while data := source.recv(65536):
            with lock:
                passed += len(data)
                if passed > limit:
                    import os; os._exit(1)
            target.sendall(data)
    except OSError:
        pass
    finally:
        for s in (source, target):
            s.close()
server = socket.create_server(("127.0.0.1", front), backlog=100)
print("ready", flush=True)
while True:
    one, _ = server.accept()
    other = socket.create_connection(("127.0.0.1", back))
    for pair in ((one, other), (other, one)):
        threading.Thread(target=copy, args=pair, daemon=True).start()
"""


@pytest.fixture
def bucket():
    """An S3 server in a process of its own, with a bucket, and the client that made it."""
    import boto3

    port = free_port()
    server = subprocess.Popen(
        [Path(sys.executable).with_name("moto_server"), "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    client = boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{port}",
        region_name="us-east-1",
        aws_access_key_id="x",
        aws_secret_access_key="x",
    )
    deadline = time.time() + 30
    while True:
        try:
            client.create_bucket(Bucket="bucket")
            break
        except Exception:
            assert time.time() < deadline and server.poll() is None
            time.sleep(0.2)
    yield port, client
    server.kill()
    server.wait()


def relay(front, back, limit="inf"):
    """Passes a port on to another, and dies after `limit` bytes."""
    child = subprocess.Popen(
        [sys.executable, "-c", FORWARD, str(front), str(back), str(limit)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout.readline() == "ready\n"
    return child


def on_s3(folder, port):
    for key, value in (
        ("url", "s3://bucket/gram"),
        ("endpointurl", f"http://127.0.0.1:{port}"),
        ("access_key_id", "x"),
        ("secret_access_key", "x"),
        ("verify", "true"),
        ("read_timeout", "5"),
        ("connect_timeout", "2"),
    ):
        run("dvc", "remote", "modify", "--local", "team", key, value, cwd=folder)


def test_s3_with_a_connection_that_breaks(ada, bucket, tmp_path):
    """The connection breaks in the middle of a push; the next one completes, all objects are
    whole, a third has nothing to do.
    """
    import hashlib

    behind, client = bucket
    run("dvc", "pull", "--run-cache", cwd=ada)
    port = free_port()
    on_s3(ada, port)
    through = relay(port, behind, limit=3e6)
    try:
        done = run("dvc", "push", "--run-cache", cwd=ada, check=False, AWS_MAX_ATTEMPTS="1")
        assert through.wait(10) == 1 and done.returncode and "ERROR" in done.stderr
        arrived = client.list_objects_v2(Bucket="bucket").get("Contents", [])
        assert arrived  # some, not all
    finally:
        through.kill()
    refused = run("dvc", "push", cwd=ada, check=False, AWS_MAX_ATTEMPTS="1")
    assert (
        refused.returncode
        and f"127.0.0.1:{port}" in refused.stderr
        and "Traceback" not in refused.stderr
    )
    through = relay(port, behind)
    try:
        assert "pushed" in run("dvc", "push", "--run-cache", cwd=ada).stdout
        objects = client.list_objects_v2(Bucket="bucket", MaxKeys=1000)["Contents"]
        assert len(objects) > len(arrived)
        for found in objects:
            path = re.search(r"files/md5/(..)/([0-9a-f]{30})(\.dir)?$", found["Key"])
            if path:
                body = client.get_object(Bucket="bucket", Key=found["Key"])["Body"].read()
                assert hashlib.md5(body).hexdigest() == path[1] + path[2]
        assert "Everything is up to date" in run("dvc", "push", cwd=ada).stdout
        other = tmp_path / "other"
        run("git", "clone", "--quiet", ada, other, cwd=tmp_path)
        on_s3(other, port)
        done = run("dvc", "repro", "--pull", cwd=other)
        assert (
            stages_run(done.stdout) == [] and (other / "data" / "report" / "report.html").exists()
        )
    finally:
        through.kill()


def test_s3_with_wrong_credentials(ada):
    """Moto checks signatures if it is told to, after a number of requests that set things up."""
    port = free_port()
    server = subprocess.Popen(
        [Path(sys.executable).with_name("moto_server"), "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=ENVIRONMENT | {"INITIAL_NO_AUTH_ACTION_COUNT": "0"},
    )
    try:
        on_s3(ada, port)
        time.sleep(3)
        done = run("dvc", "pull", "data/topics.parquet", cwd=ada, check=False, AWS_MAX_ATTEMPTS="1")
        assert (
            done.returncode
            and re.search("Forbidden|InvalidAccessKeyId|denied", done.stderr, re.I)
            and "Traceback" not in done.stderr
        )
    finally:
        server.kill()
        server.wait()


# --- merging, by itself ---


def test_merge_takes_each_stage_from_who_changed_it():
    from pipeline.merge_lock import merge_stages

    base = {"kept": 1, "ours": 1, "theirs": 1, "both": 1, "same": 1, "gone": 1, "left": 1}
    ours = {"kept": 1, "ours": 2, "theirs": 1, "both": 2, "same": 3, "left": 1, "new": 5}
    theirs = {"kept": 1, "ours": 1, "theirs": 2, "both": 3, "same": 3, "gone": 1, "other": 6}
    merged, both = merge_stages(base, ours, theirs)
    assert merged == {
        "kept": 1,
        "ours": 2,
        "theirs": 2,
        "both": 2,
        "same": 3,
        "new": 5,
        "other": 6,
    } and both == ["both"]


def test_merging_what_is_no_lock_says_so(tmp_path):
    for name, text in (
        ("base", ""),
        ("ours", "schema: '2.0'\nstages: {}\n"),
        ("theirs", "stages: [\n"),
    ):
        (tmp_path / name).write_text(text)
    done = run(
        sys.executable,
        "-m",
        "pipeline.merge_lock",
        *(tmp_path / n for n in ("base", "ours", "theirs")),
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 1 and "theirs" in done.stderr and "Traceback" not in done.stderr


# --- sweeps, by themselves ---


def test_a_sweep_is_checked_before_it_is_queued():
    from pipeline.errors import InputError
    from pipeline.sweep import check_combination, combinations

    assert combinations(["inner_lr=0.1,0.5", "seed=range(1,3)"]) == [
        ["inner_lr=0.1", "seed=1"],
        ["inner_lr=0.1", "seed=2"],
        ["inner_lr=0.5", "seed=1"],
        ["inner_lr=0.5", "seed=2"],
    ]
    check_combination(["inner_lr=0.1", "methods.meta.unigram.steps=5"], ROOT / "params.yaml")
    with pytest.raises(InputError, match="did you mean 'inner_lr'"):
        combinations(["iner_lr=1,2"])
    with pytest.raises(InputError, match="not KEY=VALUE"):
        combinations(["inner_lr"])
    with pytest.raises(
        InputError, match=r"inner_lr=-1: .*params.yaml: parameter 'inner_lr'.*greater than 0"
    ):
        check_combination(["inner_lr=-1"], ROOT / "params.yaml")


def test_a_sweep_s_table_has_means_and_spread():
    from pipeline.sweep import experiments, tabulate

    def made(name, lr, seed, h, state="success"):
        data = {
            "params": {
                "params.yaml": {"data": {"inner_lr": lr, "seed": seed, "deep": {"same": 1}}}
            },
            "metrics": {
                "data/metrics/results.json": {"data": {"clip": {"H": 60.0}, "coop_gram": {"H": h}}}
            },
        }
        return {"name": name, "executor": {"state": state}, "revs": [{"data": data}]}

    shown = [
        {"experiments": None},
        {
            "experiments": [
                made("a-2", 0.1, 2, 64.0),
                made("a-1", 0.1, 1, 62.0),
                made("a-10", 0.5, 1, 50.0),
                made("a-11", 0.5, 2, 9.0, "failed"),
                made("ab-1", 9, 1, 1.0),
                made("a", 9, 1, 1.0),
            ]
        },
    ]
    found = experiments("a", shown)
    assert [(e["name"], e["state"]) for e in found] == [
        ("a-1", "success"),
        ("a-2", "success"),
        ("a-10", "success"),
        ("a-11", "failed"),
    ]
    swept, table = tabulate(found, ["seed"])
    assert swept == ["inner_lr"] and table.columns == [
        "inner_lr",
        "runs",
        "coop_gram.H",
        "coop_gram.H_sd",
    ]
    assert table.rows() == [("0.1", 2, 63.0, pytest.approx(2**0.5)), ("0.5", 1, 50.0, None)]
