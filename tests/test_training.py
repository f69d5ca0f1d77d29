"""The meta-training loop: exact resume, processes that share a batch, and a clear stop when
numbers go wrong.
"""

import io
import itertools
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import tqdm
from conftest import ROOT, free_port
from PIL import Image
from safetensors.torch import load_file
from torch.nn import functional as F

from pipeline.artifacts import to_vectors, write_parts
from pipeline.clip import blocks
from pipeline.clip.backbone import load_backbone, open_picture
from pipeline.episodes.schemas import episodes_schema
from pipeline.episodes.shards import read_episodes
from pipeline.errors import InputError
from pipeline.gram import batch as batching
from pipeline.gram import train as loop
from pipeline.gram.batch import load_batch
from pipeline.gram.checkpoint import load_checkpoint, save_checkpoint
from pipeline.gram.learn import learn_start, training_of
from pipeline.gram.meta import InnerStep
from pipeline.gram.params import Learning, MetaMethod, Outer, Regulator
from pipeline.gram.regulator import initial_phi, regulate
from pipeline.gram.train import Training, Workplace, meta_step, meta_train, schedule
from pipeline.gram.validation import Kept
from pipeline.prompts import METHODS

NAMES = ["lion", "tiger", "bus", "pizza", "guitar"]
TASKS, WAYS, SHOTS, QUERIES = 12, 3, 2, 3
INNER = InnerStep(0.1, 1, True, "rms")


@pytest.fixture(scope="module")
def backbone():
    return load_backbone(ROOT / "demo" / "backbone")


@pytest.fixture(scope="module")
def method(backbone):
    return METHODS["coop"](backbone)


def jpeg(rng, name):
    """A patch of noise with the class's own colour."""
    colour = np.random.default_rng(NAMES.index(name)).uniform(40, 215, 3)
    pixels = np.clip(colour + rng.normal(scale=50, size=(48, 48, 3)), 0, 255)
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "jpeg")
    return file.getvalue()


def write_episodes(folder, spoiled=(), seed=0):
    """3-way tasks with random picture features: hard, so that there is something to learn.
    `spoiled` ones hold a NaN.
    """
    rng, schema = np.random.default_rng(seed), episodes_schema(128)
    rows, pictures = [], []
    for task in range(TASKS):
        names = rng.choice(NAMES, WAYS, replace=False)
        for role, count in (("support", SHOTS), ("query", QUERIES)):
            rows += [
                (task, role, k, names[k], k, 0, "key") for k in range(WAYS) for _ in range(count)
            ]
            pictures += [jpeg(rng, names[k]) for k in range(WAYS) for _ in range(count)]
    x = rng.normal(size=(len(rows), 128))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    for task in spoiled:
        x[task * WAYS * (SHOTS + QUERIES), 7] = np.nan
    columns = [pa.array(c, type=f.type) for c, f in zip(zip(*rows), schema)]
    table = pa.table([*columns, to_vectors(x), pa.array(pictures, pa.binary())], schema=schema)
    rows = WAYS * (SHOTS + QUERIES)
    write_parts(
        (table.slice(first, rows) for first in range(0, len(table), rows)),
        folder / "00000.parquet",
        schema,
    )
    return folder


@pytest.fixture(scope="module")
def episodes(tmp_path_factory):
    return write_episodes(tmp_path_factory.mktemp("episodes"))


@pytest.fixture(scope="module")
def judged_episodes(tmp_path_factory):
    """Training tasks, and the same number of others for validation."""
    folder = write_episodes(tmp_path_factory.mktemp("judged"))
    write_episodes(folder / "validation", seed=1)
    return folder


class Stop(Exception):
    pass


def outer(**changes):
    return Outer(
        **(
            {
                "optimiser": "adamw",
                "weight_decay": 0.0,
                "schedule": "constant",
                "clip_norm": 1.0,
                "precision": "fp32",
                "recompute": False,
                "measure_every": 1,
                "checkpoint_every": 3,
            }
            | changes
        )
    )


def start(method, regulated=True, count=4):
    theta = {
        k: v.requires_grad_()
        for k, v in method.initial(count, torch.Generator().manual_seed(1)).items()
    }
    settings = Regulator(input_scale="rms", bias=2.0, weight_std=0.02, bias_per_token=True)
    phi = initial_phi(theta, settings, torch.Generator().manual_seed(2)) if regulated else {}
    return theta, {k: v.requires_grad_() for k, v in phi.items()}


def train(method, episodes, work, steps=10, stop=None, pause=None, regulated=True, **changes):
    """`stop`: raise at that step; `pause`: step from which on there is a pause before each."""

    def progress(items, label, total=None):
        def some():
            for i in items:
                if i == stop:
                    raise Stop
                if pause is not None and i >= pause:
                    time.sleep(0.5)
                yield i

        return tqdm.tqdm(some(), disable=True)

    work.mkdir(exist_ok=True)
    theta, phi = start(method, regulated)
    place = Workplace(episodes, work, changes.pop("at_once", None), progress)
    settings = {
        "inner": INNER,
        "outer": outer(),
        "outer_lr": 0.01,
        "regulator_lr": 0.01,
        "batch": 4,
        "steps": steps,
    }
    curve = meta_train(method, theta, phi, Training(**(settings | changes)), place)
    return theta, phi, curve


def tensors_of(theta, phi):
    return {f"theta/{k}": v.detach() for k, v in theta.items()} | {
        f"phi/{k}": v.detach() for k, v in phi.items()
    }


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# What a float32 sum over a batch's tokens may be off by, as a share of the largest of all entries:
# some eight units in the last place. A tensor that happens to be nearly zero has no better
# precision.
ROUNDING = 8 * torch.finfo(torch.float32).eps


def assert_close(found, expected, rtol=1e-6):
    """Each tensor within `rtol` of the other's largest entry, give or take the rounding of sums as
    large as the largest entry of them all.
    """
    assert found.keys() == expected.keys()
    rounding = ROUNDING * max(v.abs().max() for v in expected.values())
    for name in expected:
        bound = rtol * expected[name].abs().max() + rounding
        assert (found[name] - expected[name]).abs().max() <= bound, name


def one_step(
    method, episodes, numbers, inner=INNER, regulated=True, shares=1, theta_phi=None, **changes
):
    """`meta_step` on some tasks, with everything measured."""
    theta, phi = theta_phi or start(method, regulated)
    tasks = [t for t in read_episodes(episodes, method.sees_pixels) if t.number in numbers]
    size = len(tasks) // shares
    return meta_step(
        method,
        theta,
        phi,
        [load_batch(method, tasks[i : i + size]) for i in range(0, len(tasks), size)],
        inner,
        outer(**changes),
        True,
    )


@pytest.mark.whole
@pytest.mark.parametrize(
    "changes",
    [{}, {"outer": outer(optimiser="sgd", schedule="cosine", weight_decay=0.01)}],
    ids=["adamw", "sgd"],
)
def test_resumed_training_is_the_same_to_the_bit(method, episodes, tmp_path, changes):
    theta, phi, curve = train(method, episodes, tmp_path / "a", **changes)
    with pytest.raises(Stop):
        train(method, episodes, tmp_path / "b", stop=8, **changes)  # the checkpoint is at step 6
    assert not equal(
        load_file(tmp_path / "a" / "checkpoint.safetensors"),
        load_file(tmp_path / "b" / "checkpoint.safetensors"),
    )
    theta_again, phi_again, curve_again = train(method, episodes, tmp_path / "b", **changes)
    assert equal(tensors_of(theta, phi), tensors_of(theta_again, phi_again))
    assert curve == curve_again and [row["step"] for row in curve] == list(range(10))


@pytest.mark.whole
@pytest.mark.parametrize("prompt", ["coop", "vpt"])
def test_the_towers_run_in_one_thread_only(backbone, episodes, tmp_path, monkeypatch, prompt):
    """Which attention runs is a setting of the whole process: in the thread that reads ahead it
    would be a matter of timing.
    """
    threads, method = [], METHODS[prompt](backbone)
    for name in ("prepare", "look", "logits"):
        call = getattr(method, name)
        monkeypatch.setattr(
            method,
            name,
            lambda *args, call=call: threads.append(threading.current_thread()) or call(*args),
            raising=False,
        )
    train(method, episodes, tmp_path, steps=2, batch=1)
    assert set(threads) == {threading.main_thread()}


@pytest.mark.whole
@pytest.mark.parametrize("prompt", ["coop", "vpt"])
def test_episodes_are_read_in_threads_that_end(backbone, episodes, tmp_path, monkeypatch, prompt):
    threads = set()
    for name in ("read_episodes", "shown"):
        call = getattr(batching, name)
        monkeypatch.setattr(
            batching,
            name,
            lambda *args, call=call: threads.add(threading.current_thread()) or call(*args),
        )
    train(METHODS[prompt](backbone), episodes, tmp_path, steps=2, batch=2)
    assert len(threads) == 1 and threading.main_thread() not in threads
    assert not [t for t in threading.enumerate() if t.name.startswith("ThreadPoolExecutor")]


def test_a_shard_that_is_cut_off_stops_training_by_its_name(method, tmp_path):
    shard = write_episodes(tmp_path) / "00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-9])
    with pytest.raises(InputError, match="00000.parquet: not a complete Parquet file"):
        train(method, tmp_path, tmp_path, steps=2)


HARD_KILL = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_training as t
method = t.METHODS["coop"](t.load_backbone(t.ROOT / "demo" / "backbone"))
t.train(method, Path({episodes!r}), Path({work!r}), pause=4)
"""


@pytest.mark.whole
def test_training_goes_on_after_a_hard_kill(method, episodes, tmp_path):
    theta, phi, curve = train(method, episodes, tmp_path / "whole")
    work, checkpoint = tmp_path / "killed", tmp_path / "killed" / "checkpoint.safetensors"
    script = HARD_KILL.format(tests=str(ROOT / "tests"), episodes=str(episodes), work=str(work))
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT)
    try:
        limit = time.monotonic() + 120
        while not checkpoint.exists() and process.poll() is None and time.monotonic() < limit:
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and checkpoint.exists()
    theta_again, phi_again, curve_again = train(method, episodes, work)
    assert curve == curve_again
    assert equal(tensors_of(theta, phi), tensors_of(theta_again, phi_again))


TORCHRUN = """
import os, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_training as t
from safetensors.torch import save_file
out = Path({out!r})
method = t.METHODS["coop"](t.load_backbone(t.ROOT / "demo" / "backbone"))
loads = []
load = t.loop.load_batch
def counted(method, tasks, pictures):
    loads.append([e.number for e in tasks])
    return load(method, tasks, pictures)
t.loop.load_batch = counted
outer = t.outer(optimiser="sgd", clip_norm=100.0)
rates = dict(outer_lr=0.1, regulator_lr=0.1)
theta, phi, curve = t.train(
    method, Path({episodes!r}), out / "work", steps=3, outer=outer, **rates
)
(out / f"loads{{os.environ['RANK']}}").write_text(repr(loads[:3]))
(out / f"curve{{os.environ['RANK']}}").write_text(repr(curve))
save_file(t.tensors_of(theta, phi), out / f"rank{{os.environ['RANK']}}.safetensors")
"""


@pytest.mark.whole
def test_two_processes_do_what_one_does(method, judged_episodes, tmp_path):
    """SGD without clipping, so that what θ and φ moved by shows the meta-gradients' size. They
    share the validation tasks, too.
    """
    episodes = judged_episodes
    script = tmp_path / "two.py"
    script.write_text(
        TORCHRUN.format(tests=str(ROOT / "tests"), episodes=str(episodes), out=str(tmp_path))
    )
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        str(port),
        str(script),
    ]
    done = subprocess.run(
        command,
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
        env=os.environ | {"OMP_NUM_THREADS": "1", "DEVICE": "cpu"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    changes = {
        "steps": 3,
        "outer": outer(optimiser="sgd", clip_norm=100.0),
        "outer_lr": 0.1,
        "regulator_lr": 0.1,
    }
    theta, phi, curve = train(method, episodes, tmp_path / "one", **changes)
    expected, begin = tensors_of(theta, phi), tensors_of(*start(method))
    for rank in (0, 1):
        found = load_file(tmp_path / f"rank{rank}.safetensors")
        assert_close(
            {k: v - begin[k] for k, v in found.items()},
            {k: v - begin[k] for k, v in expected.items()},
            1e-4,
        )
        for row, other in zip(curve, eval((tmp_path / f"curve{rank}").read_text()), strict=True):
            assert row == pytest.approx(other, rel=1e-4)
    assert [eval((tmp_path / f"loads{rank}").read_text()) for rank in (0, 1)] == [
        [[0, 1], [4, 5], [8, 9]],
        [[2, 3], [6, 7], [10, 11]],
    ]
    assert equal(
        load_file(tmp_path / "rank0.safetensors"), load_file(tmp_path / "rank1.safetensors")
    )


def test_a_batch_that_cannot_be_shared(method, episodes, tmp_path):
    with pytest.raises(
        InputError,
        match=(
            "'meta_batch' is 4, which 1 processes with 3 tasks at once cannot share evenly; "
            "choose a multiple of 3"
        ),
    ):
        train(method, episodes, tmp_path, at_once=3)


@pytest.mark.parametrize("at_once", [1, 2])
def test_tasks_at_once_change_nothing_but_rounding(method, episodes, tmp_path, at_once):
    changes = {
        "steps": 3,
        "outer": outer(optimiser="sgd", clip_norm=100.0),
        "outer_lr": 0.1,
        "regulator_lr": 0.1,
    }
    whole = train(method, episodes, tmp_path / "whole", **changes)
    shared = train(method, episodes, tmp_path / "shared", at_once=at_once, **changes)
    begin = tensors_of(*start(method))
    moved = lambda run: {k: v - begin[k] for k, v in tensors_of(*run[:2]).items()}
    assert_close(moved(shared), moved(whole), 1e-4)
    for row, other in zip(whole[2], shared[2], strict=True):
        assert row == pytest.approx(other, rel=1e-4)


@pytest.mark.whole
def test_learning_changes_tokens_and_regulator_and_lowers_the_loss(method, episodes, tmp_path):
    theta, phi, curve = train(method, episodes, tmp_path, steps=30)
    begin = tensors_of(*start(method))
    for name, after in tensors_of(theta, phi).items():
        assert not torch.equal(after, begin[name]), name
    assert np.mean([c["query_loss"] for c in curve[-6:]]) < np.mean(
        [c["query_loss"] for c in curve[:6]]
    )


@pytest.mark.whole
@pytest.mark.parametrize("prompt", ["vpt", "joint"])
def test_visual_tokens_learn_from_the_pictures(backbone, episodes, tmp_path, prompt):
    """The bytes in the shards are decoded; the cached features (random here) are not used."""
    method = METHODS[prompt](backbone)
    theta, _phi, curve = train(method, episodes, tmp_path, steps=9, batch=2, outer_lr=0.05)
    assert np.mean([c["query_loss"] for c in curve[-3:]]) < np.mean(
        [c["query_loss"] for c in curve[:3]]
    )
    assert all((theta[k] - v).abs().max() > 0.01 for k, v in start(method)[0].items())

    # The first row, from the files: what open_clip says of these pictures with the tokens of the
    # start.
    losses = []
    for task in list(read_episodes(episodes, pictures=True))[:2]:
        pixels = torch.stack([backbone.test_view(open_picture(p)) for p in task.query_pictures])
        with torch.no_grad():
            tokens = {k: v.unsqueeze(0) for k, v in start(method)[0].items()}
            logits = method.logits(
                tokens, method.prepare([task.names]), method.look(pixels.unsqueeze(0))
            )[0]
        losses.append(F.cross_entropy(logits, torch.arange(WAYS).repeat_interleave(QUERIES)).item())
    assert curve[0]["start_loss"] == pytest.approx(np.mean(losses), rel=1e-5)


def test_without_inner_steps_it_is_plain_classification(method, episodes):
    """algorithm: pretrain is the gradient of the mean cross-entropy over all of the tasks'
    pictures at θ.
    """
    found = one_step(method, episodes, {1, 4}, inner=InnerStep(0.1, 0), regulated=False)
    theta, _ = start(method)
    table, losses, hits = pq.read_table(episodes / "00000.parquet").to_pylist(), [], []
    for number in (1, 4):
        rows = [r for r in table if r["task"] == number]
        names = [next(r["name"] for r in rows if r["label"] == k) for k in range(WAYS)]
        features = torch.tensor(np.array([r["image"] for r in rows], dtype=np.float32))
        labels = torch.tensor([r["label"] for r in rows])
        logits = method.logits(
            {"text": theta["text"].unsqueeze(0)}, method.prepare([names]), features.unsqueeze(0)
        )[0]
        losses.append(F.cross_entropy(logits, labels))
        hits.append((logits.argmax(1) == labels).float().mean().item())
    loss = sum(losses) / 2
    assert_close(found.theta, {"text": torch.autograd.grad(loss, theta["text"])[0]}, 1e-4)
    assert found.phi == {} and found.figures == pytest.approx(
        {"query_loss": loss.item(), "query_accuracy": np.mean(hits)}, rel=1e-5
    )


def test_pretraining_runs_and_leaves_what_it_cannot_measure_empty(method, episodes, tmp_path):
    _theta, phi, curve = train(
        method, episodes, tmp_path, steps=3, regulated=False, inner=InnerStep(0.1, 0)
    )
    assert (
        curve[0].keys() == set(loop.COLUMNS)
        and curve[0]["start_loss"] is None
        and curve[0]["raw_rms"] is None
    )
    assert phi == {} and curve[0]["phi_norm"] == 0.0 and curve[0]["theta_norm"] > 0


def test_an_entry_s_own_rate_and_steps_replace_the_common_ones(backbone, episodes, tmp_path):
    def learn(common_inner, common_outer=0.01, **own):
        work = tmp_path / str(len(list(tmp_path.iterdir())))
        work.mkdir()
        found, curve = learn_start(
            backbone,
            MetaMethod(prompt="coop", episodes="shifted", **own),
            Learning(
                context_tokens=4,
                inner_lr=common_inner,
                inner_steps=1,
                regulator=Regulator(
                    input_scale="rms", bias=2.0, weight_std=0.0, bias_per_token=False
                ),
                outer=outer(),
                outer_lr=common_outer,
                regulator_lr=0.01,
                meta_batch=4,
                meta_steps=2,
            ),
            1,
            Workplace(episodes, work),
        )
        return found.theta | found.phi, len(curve)

    assert learn(0.1, steps=3)[1] == 3
    assert equal(learn(0.5, inner_lr_factor=0.2)[0], learn(0.1)[0])
    assert equal(learn(0.1, 0.002, outer_lr_factor=5.0)[0], learn(0.1)[0])
    assert not equal(learn(0.7)[0], learn(0.1)[0]) and not equal(learn(0.1, 0.05)[0], learn(0.1)[0])


def test_another_seed_depth_or_regulator_is_another_start(backbone, episodes, tmp_path):
    """The kind of prompt, its depth and the input scale stay with the start; φ is there for the
    affine regulator of Algorithm 1 alone.
    """

    def learned(seed=1, **own):
        work = tmp_path / f"{seed}{own}"
        work.mkdir()
        entry = MetaMethod(prompt="coop", episodes="e", steps=1, **own)
        return learn_start(backbone, entry, LEARNED, seed, Workplace(episodes, work))[0]

    first = learned()
    assert (first.prompt, first.depth, first.input_scale) == ("coop", 1, "rms")
    assert set(first.theta) == {"text"} and set(first.phi) > {"text.W_gamma", "text.b_beta"}
    assert not any(leaf.requires_grad for leaf in (first.theta | first.phi).values())
    # beyond four tokens they are random, by the seed
    many = [learned(seed, tokens=6).theta for seed in (1, 2)]
    assert many[0]["text"].shape[0] == 6 and not torch.equal(many[0]["text"], many[1]["text"])
    deep = learned(depth=2)
    assert deep.depth == 2 and deep.theta["text"].shape[0] == 2 * first.theta["text"].shape[0]
    assert not learned(regulator="identity").phi
    assert not learned(algorithm="pretrain").phi


LEARNED = Learning(
    context_tokens=4,
    inner_lr=0.1,
    inner_steps=2,
    regulator=Regulator(input_scale="rms", bias=2.0, weight_std=0.0, bias_per_token=False),
    outer=outer(),
    outer_lr=0.01,
    regulator_lr=0.01,
    meta_batch=4,
    meta_steps=2,
)
VALIDATION = ("validation_start", "validation_plain", "validation")


def seen_on_validation(method, folder, theta, phi, inner):
    """Task by task and by hand: (loss, accuracy) at θ, after plain steps and after regulated."""
    rows = []
    for task in read_episodes(folder / "validation", method.sees_pixels):
        batch, row = load_batch(method, [task]), []
        for regulator in (None, {}, phi):
            tokens = {k: v.detach()[None].requires_grad_() for k, v in theta.items()}
            for _ in range(inner.steps if regulator is not None else 0):
                logits = method.logits(tokens, batch.classes, batch.support)
                loss = F.cross_entropy(logits[0], batch.support_labels[0])
                found = torch.autograd.grad(loss, list(tokens.values()))
                step = regulate(regulator, dict(zip(tokens, found)), inner.input_scale)
                tokens = {
                    k: (v - inner.lr * step[k]).detach().requires_grad_() for k, v in tokens.items()
                }
            logits = method.logits(tokens, batch.classes, batch.query)[0]
            labels = batch.query_labels[0]
            row.append(F.cross_entropy(logits, labels).item())
            row.append((logits.argmax(dim=1) == labels).float().mean().item())
        rows.append(row)
    names = [f"{state}_{what}" for state in VALIDATION for what in ("loss", "accuracy")]
    return dict(zip(names, np.mean(rows, axis=0)))


def validated(row):
    return {k: v for k, v in row.items() if k.startswith("validation")}


@pytest.mark.parametrize(
    ("prompt", "at_once", "inner"),
    [
        ("coop", None, INNER),
        ("coop", 2, InnerStep(0.05, 3, True, "none")),
        pytest.param("vpt", 1, INNER, marks=pytest.mark.whole),
    ],
    ids=["coop", "three steps", "vpt"],
)
def test_validation_tasks_say_what_they_say_by_hand(
    backbone, judged_episodes, tmp_path, prompt, at_once, inner
):
    """Before the first step, and after the last; nothing of it is trained on."""
    method = METHODS[prompt](backbone)
    changes = {"steps": 2, "batch": 2, "inner": inner, "at_once": at_once}
    theta, phi, curve = train(method, judged_episodes, tmp_path, **changes)
    for row, at in ((curve[0], start(method)), (curve[-1], (theta, phi))):
        expected = seen_on_validation(method, judged_episodes, *at, inner)
        assert validated(row) == pytest.approx(expected, rel=1e-4)
    assert curve[0]["validation_loss"] != curve[0]["validation_plain_loss"]


@pytest.mark.whole
def test_looking_at_validation_tasks_teaches_nothing(method, episodes, judged_episodes, tmp_path):
    looked = train(method, judged_episodes, tmp_path / "a", outer=outer(validate_every=3))
    blind = train(method, episodes, tmp_path / "b")
    assert equal(tensors_of(*looked[:2]), tensors_of(*blind[:2]))
    seen = [row["step"] for row in looked[2] if validated(row)]
    assert seen == [0, 3, 6, 9]
    assert not any(validated(row) for row in blind[2])


def test_without_a_regulator_both_adaptations_are_one(method, judged_episodes, tmp_path):
    curve = train(method, judged_episodes, tmp_path, steps=1, regulated=False)[2]
    row = validated(curve[-1])
    assert row["validation_loss"] == row["validation_plain_loss"] != row["validation_start_loss"]


def test_a_pre_training_is_judged_by_what_an_inner_step_would_make_of_it():
    common = training_of(MetaMethod(prompt="coop", episodes="e", algorithm="pretrain"), LEARNED)
    assert common.inner.steps == 0 and common.judged.steps == LEARNED.inner_steps
    assert common.criterion == "validation_start_loss"
    gram = training_of(MetaMethod(prompt="coop", episodes="e"), LEARNED)
    assert gram.judged == gram.inner and gram.criterion == "validation_loss"


def test_the_average_is_that_of_the_second_half_of_theta_and_of_phi(
    method, judged_episodes, tmp_path
):
    theta, phi, curve = train(
        method, judged_episodes, tmp_path / "kept", steps=3, outer=outer(keep="average")
    )
    found = [
        tensors_of(*train(method, judged_episodes, tmp_path / str(n), steps=n)[:2]) for n in (2, 3)
    ]
    expected = {k: torch.stack([state[k] for state in found]).mean(dim=0) for k in found[0]}
    assert any(k.startswith("phi/") for k in expected)
    assert_close(tensors_of(theta, phi), expected, 1e-5)
    assert any(not torch.equal(expected[k], found[-1][k]) for k in expected if "phi/" in k)
    by_hand = seen_on_validation(method, judged_episodes, theta, phi, INNER)
    assert validated(curve[-1]) == pytest.approx(by_hand, rel=1e-4)


def test_the_best_is_what_validation_tasks_like_most(method, judged_episodes, tmp_path):
    """A rate at which tokens are soon as good as they get, and worse again."""
    changes = {"steps": 7, "outer_lr": 0.5, "regulator_lr": 0.5}
    every = {"outer": outer(keep="best", validate_every=1)}
    theta, phi, curve = train(method, judged_episodes, tmp_path / "best", **changes, **every)
    last = train(
        method, judged_episodes, tmp_path / "last", **changes, outer=outer(validate_every=1)
    )
    best = min(last[2], key=lambda row: row["validation_loss"])
    assert 0 < best["step"] < 6  # else this test shows nothing
    assert validated(curve[-1]) == validated(best)
    changes["steps"] = best["step"]
    at_best = train(method, judged_episodes, tmp_path / "at", **changes)
    assert equal(tensors_of(theta, phi), tensors_of(*at_best[:2]))
    assert not equal(tensors_of(theta, phi), tensors_of(*last[:2]))


def test_the_state_after_the_last_step_may_be_the_best(method, judged_episodes, tmp_path):
    """Slow learning, judged on its own tasks' like, is best at its end, which is looked at too."""
    changes = {"steps": 3, "outer_lr": 1e-3, "regulator_lr": 1e-3}
    every = {"outer": outer(keep="best", validate_every=1)}
    best = train(method, judged_episodes, tmp_path / "best", **changes, **every)
    last = train(method, judged_episodes, tmp_path / "last", **changes)
    seen = [row["validation_loss"] for row in best[2][:-1]]
    assert last[2][-1]["validation_loss"] < min(seen)  # else this test shows nothing
    assert equal(tensors_of(*best[:2]), tensors_of(*last[:2]))


def test_the_first_of_equally_good_states_is_kept_and_comes_back(tmp_path):
    theta = {"text": torch.zeros(2, 3, requires_grad=True)}
    optimiser = torch.optim.SGD(theta.values(), 1.0)
    kept = Kept("best", theta, {}, 4)
    for value, loss in ((1.0, 0.5), (2.0, 0.5), (3.0, 0.6)):
        with torch.no_grad():
            theta["text"].fill_(value)
        kept.judged({"validation_loss": loss}, "validation_loss")
    save_checkpoint(tmp_path / "c.safetensors", kept, optimiser, 2, [{"step": 0}])
    again = Kept("best", {"text": torch.zeros(2, 3, requires_grad=True)}, {}, 4)
    done = load_checkpoint(tmp_path / "c.safetensors", again, optimiser)
    assert done == (2, [{"step": 0}]) and again.leaves["theta/text"].unique().item() == 3.0
    for state in (kept, again):
        assert state.figures == {"validation_loss": 0.5} and state.count == 0
        state.judged({"validation_loss": 0.55}, "validation_loss")  # no better
        state.put()
        assert state.leaves["theta/text"].unique().item() == 1.0


@pytest.mark.parametrize("size", [4, 5])
def test_batches_go_on_where_they_were(episodes, size):
    """Pass after pass over twelve tasks, what is left over at a pass's end left out."""
    from_first = [
        [task.number for task in batch]
        for batch in itertools.islice(batching.batches(episodes, size, 0), 8)
    ]
    passes = [list(range(i, i + size)) for i in range(0, 12 - size + 1, size)]
    assert from_first == (passes * 8)[:8]
    for skip in range(1, 7):
        rest = itertools.islice(batching.batches(episodes, size, skip), 8 - skip)
        assert [[task.number for task in batch] for batch in rest] == from_first[skip:]


@pytest.mark.parametrize("keep", ["best", "average"])
def test_resumed_training_keeps_the_same(method, judged_episodes, tmp_path, keep):
    changes = {"outer": outer(keep=keep, validate_every=2), "outer_lr": 0.2}
    whole = train(method, judged_episodes, tmp_path / "a", **changes)
    with pytest.raises(Stop):  # the checkpoint is at step 6, in the second half
        train(method, judged_episodes, tmp_path / "b", stop=8, **changes)
    again = train(method, judged_episodes, tmp_path / "b", **changes)
    assert equal(tensors_of(*whole[:2]), tensors_of(*again[:2])) and whole[2] == again[2]


def test_the_best_of_nothing_is_refused(method, episodes, tmp_path):
    with pytest.raises(InputError, match="holds no validation tasks.*'held_out_topics'.*average"):
        train(method, episodes, tmp_path, outer=outer(keep="best"))


def test_agreement_columns(method, episodes, tmp_path):
    """Normalised inner products; R^φ changes them, plain gradients do not; measured every other
    step here.
    """
    _, _, curve = train(method, episodes, tmp_path / "gram", steps=4, outer=outer(measure_every=2))
    _, _, plain = train(method, episodes, tmp_path / "maml", steps=4, regulated=False)
    assert [row["raw_agreement"] is None for row in curve] == [False, True, False, True]
    for row in (*curve[::2], *plain):
        assert -1 <= row["raw_agreement"] <= 1 and -1 <= row["regulated_agreement"] <= 1
    assert all(row["raw_agreement"] == row["regulated_agreement"] for row in plain)
    assert curve[0]["raw_agreement"] == pytest.approx(plain[0]["raw_agreement"], rel=1e-5)
    assert curve[0]["raw_agreement"] != pytest.approx(curve[0]["regulated_agreement"], rel=1e-5)


def test_the_inner_product_is_what_a_small_step_takes_off_the_query_loss(
    method, episodes, tmp_path
):
    small = InnerStep(0.01, 1, True, "rms")
    for regulated in (True, False):
        row = train(
            method, episodes, tmp_path / str(regulated), 1, regulated=regulated, inner=small
        )[2][0]
        tasks = [t for t in read_episodes(episodes) if t.number < 4]
        theta, batch = start(method)[0], load_batch(method, tasks)
        each = []
        for k in range(4):
            tokens = {name: v.detach()[None].expand(4, -1, -1).clone() for name, v in theta.items()}
            tokens = {name: v.requires_grad_() for name, v in tokens.items()}
            logits = method.logits(tokens, batch.classes, batch.support)[k]
            loss = F.cross_entropy(logits, batch.support_labels[k])
            (g,) = torch.autograd.grad(loss, list(tokens.values()))
            each.append(g[k].square().mean().sqrt().item())
        assert row["raw_rms"] == pytest.approx(np.mean(each), rel=1e-4)
        taken = row["start_loss"] - row["query_loss"]
        assert taken == pytest.approx(0.01 * row["regulated_inner"], rel=0.05)
        assert (row["raw_inner"] == row["regulated_inner"]) != regulated


def test_sgd_by_hand(method, episodes, tmp_path):
    """Two steps with momentum 0.9: v ← 0.9 v + g + weight_decay · θ, θ ← θ − rate · v."""
    changes = {"optimiser": "sgd", "clip_norm": 100.0, "weight_decay": 0.1}
    theta, phi, _ = train(
        method, episodes, tmp_path, steps=2, outer=outer(**changes), outer_lr=0.5, regulator_lr=0.25
    )
    at, moved = start(method), None
    for numbers in ({0, 1, 2, 3}, {4, 5, 6, 7}):
        found = one_step(method, episodes, numbers, theta_phi=at)
        gradients = [
            {k: g + 0.1 * leaf[k].detach() for k, g in part.items()}
            for leaf, part in zip(at, (found.theta, found.phi))
        ]
        moved = (
            gradients
            if moved is None
            else [{k: 0.9 * v[k] + g[k] for k in g} for v, g in zip(moved, gradients)]
        )
        at = tuple(
            {k: (v.detach() - rate * m[k]).requires_grad_() for k, v in leaf.items()}
            for leaf, m, rate in zip(at, moved, (0.5, 0.25))
        )
    assert_close(tensors_of(theta, phi), tensors_of(*at))


def test_adamw_by_hand(method, episodes, tmp_path):
    """Its first step is θ (1 − rate · weight_decay) − rate · g / (|g| + 1e-8), g clipped to
    `clip_norm`, of θ and φ apart.
    """
    theta, phi, curve = train(
        method,
        episodes,
        tmp_path,
        steps=1,
        outer=outer(weight_decay=0.5, clip_norm=1e-7),
        outer_lr=0.02,
        regulator_lr=0.01,
    )
    found, begin = one_step(method, episodes, {0, 1, 2, 3}), start(method)
    for leaves, gradients, after, rate, column in zip(
        begin, (found.theta, found.phi), (theta, phi), (0.02, 0.01), ("theta_norm", "phi_norm")
    ):
        norm = torch.cat([g.flatten() for g in gradients.values()]).norm().item()
        assert curve[0][column] == pytest.approx(norm, rel=1e-5)
        for name, g in gradients.items():
            clipped = g * 1e-7 / (norm + 1e-6)
            moved = rate * clipped / (clipped.abs() + 1e-8)
            expected = leaves[name].detach() * (1 - rate * 0.5) - moved
            assert (after[name] - expected).abs().max() < 2e-6, name


def test_the_cosine_schedule_ends_at_zero(method, episodes, tmp_path, monkeypatch):
    assert [schedule(i, 8, "cosine") for i in (0, 4)] == pytest.approx([1.0, 0.5]) and schedule(
        8, 8, "cosine"
    ) == pytest.approx(0.0, abs=1e-12)
    assert all(schedule(i, 8, "cosine") > schedule(i + 1, 8, "cosine") for i in range(8))
    assert {schedule(i, 8, "constant") for i in range(9)} == {1.0}

    rates, make = [], loop.optimiser_of

    def watched(*args):
        optimiser = make(*args)
        optimiser.register_step_pre_hook(
            lambda o, *_: rates.append([g["lr"] for g in o.param_groups])
        )
        return optimiser

    monkeypatch.setattr(loop, "optimiser_of", watched)
    with pytest.raises(Stop):
        train(
            method,
            episodes,
            tmp_path,
            steps=5,
            stop=4,
            outer=outer(schedule="cosine"),
            outer_lr=0.1,
            regulator_lr=0.2,
        )
    # from step 3 on
    train(
        method,
        episodes,
        tmp_path,
        steps=5,
        outer=outer(schedule="cosine"),
        outer_lr=0.1,
        regulator_lr=0.2,
    )
    of_step = [0.5 * (1 + np.cos(np.pi * i / 5)) for i in (0, 1, 2, 3, 3, 4)]
    assert np.allclose(rates, [[0.1 * r, 0.2 * r] for r in of_step])


def cosine(a, b):
    flat = lambda part: torch.cat([part[k].flatten() for k in a])
    return F.cosine_similarity(flat(a), flat(b), dim=0).item()


@pytest.mark.whole
@pytest.mark.parametrize("prompt", ["coop", "vpt"])
def test_bf16_is_close_to_fp32(backbone, episodes, prompt):
    """Not equal, or the precision would not have been used; tokens, regulator and their
    gradients stay fp32.
    """
    method = METHODS[prompt](backbone)
    exact, short = (
        one_step(method, episodes, {0, 1} if prompt == "coop" else {0}, precision=p)
        for p in ("fp32", "bf16")
    )
    assert all(g.dtype == torch.float32 for g in (*short.theta.values(), *short.phi.values()))
    assert 0.98 < cosine(exact.theta, short.theta) < 0.999999
    assert 0.98 < cosine(exact.phi, short.phi) < 0.999999
    assert short.figures["query_loss"] == pytest.approx(exact.figures["query_loss"], rel=0.02)


@pytest.mark.whole
@pytest.mark.parametrize("second_order", [True, False])
@pytest.mark.parametrize("prompt", ["coop", "vpt", "joint"])
def test_recomputed_activations_give_the_same_gradients(
    backbone, episodes, prompt, second_order, monkeypatch
):
    method, inner = METHODS[prompt](backbone), InnerStep(0.1, 2, second_order, "rms")
    runs, block = [], blocks._block
    monkeypatch.setattr(blocks, "_block", lambda *args: runs.append(1) or block(*args))
    kept = one_step(method, episodes, {0, 1}, inner=inner)
    without = len(runs)
    again = one_step(method, episodes, {0, 1}, inner=inner, recompute=True)
    assert len(runs) - without > without > 0
    assert_close(again.theta | again.phi, kept.theta | kept.phi, 1e-4)
    assert again.figures == pytest.approx(kept.figures, rel=1e-4)


@pytest.mark.parametrize("at_once", [None, 2])
def test_a_task_that_is_not_finite_is_named(method, tmp_path, at_once):
    """Task 6 is in the second batch; its neighbours are not blamed, and what was learned before
    it is kept.
    """
    (tmp_path / "episodes").mkdir()
    spoiled = write_episodes(tmp_path / "episodes", spoiled=[6])
    with pytest.raises(
        InputError,
        match=r"episodes: at meta-step 1, loss or gradient is not finite \(tasks 6\); "
        r"lower 'inner_lr'",
    ):
        train(method, spoiled, tmp_path / "work", at_once=at_once, outer=outer(checkpoint_every=1))
    kept = load_file(tmp_path / "work" / "checkpoint.safetensors")
    assert all(v.isfinite().all() for v in kept.values())


def test_all_tasks_are_named_if_all_are_at_fault(method, episodes, tmp_path):
    with pytest.raises(
        InputError,
        match=r"at meta-step 0, loss or gradient is not finite \(tasks 0, 1, 2, 3\); "
        r"lower 'inner_lr'",
    ):
        train(method, episodes, tmp_path, inner=InnerStep(float("inf"), 1, True, "rms"))


def test_fewer_tasks_than_a_batch(method, episodes, tmp_path):
    with pytest.raises(
        InputError, match="holds 12 tasks, fewer than one batch of 'meta_batch' = 13"
    ):
        train(method, episodes, tmp_path, batch=13)
