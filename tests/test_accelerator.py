"""Every stage that touches torch on a make-believe accelerator, for every kind of prompt: what it
leaves is what the processor leaves, within rounding.
"""

import os
import subprocess
import sys
from pathlib import Path

import accelerator
import numpy as np
import polars as pl
import pytest
import tiny
import torch
from accelerator import Use
from safetensors.torch import load_file

from pipeline.clip import text
from pipeline.clip.backbone import load_backbone
from pipeline.gram.learn import initial_tokens
from pipeline.gram.params import MetaMethod
from pipeline.gram.serving import Classifier
from pipeline.prompts import cocoop

# ACCELERATOR=cuda compares a real one
DEVICES = ("cpu", os.environ.get("ACCELERATOR") or accelerator.NAME)


def on_both(monkeypatch, tmp_path, work):
    """What `work(out)` leaves in a folder on the processor, and on the accelerator."""
    for device in DEVICES:
        monkeypatch.setenv("DEVICE", device)
        before = Use.operations
        work(tmp_path / device)
        if accelerator.NAME in DEVICES:
            assert (Use.operations > before) == (device == accelerator.NAME)
    return [numbers_of(tmp_path / device) for device in DEVICES]


def numbers_of(folder: Path) -> dict[str, np.ndarray]:
    """Every array of the files in a folder, by file and name."""
    found = {}
    for path in sorted(folder.rglob("*.*")):
        name = str(path.relative_to(folder))
        if path.suffix == ".safetensors":
            found |= {f"{name}: {k}": v.numpy() for k, v in load_file(path).items()}
        elif path.suffix in (".parquet", ".csv"):
            table = pl.read_parquet(path) if path.suffix == ".parquet" else pl.read_csv(path)
            for column in table:
                if column.dtype.is_nested():
                    found[f"{name}: {column.name}"] = np.array(column.to_list(), np.float32)
                elif column.dtype.is_numeric():
                    found[f"{name}: {column.name}"] = column.to_numpy()
    return found


def assert_same(one, other, rtol, atol=0.0):
    """Arrays of the same names and shapes, each within `rtol` of its largest entry."""
    assert one.keys() == other.keys() and one
    for name, expected in one.items():
        found = other[name]
        assert found.shape == expected.shape, name
        far = np.nan_to_num(np.abs(found - expected)).max(initial=0)
        assert far <= atol + rtol * np.nan_to_num(np.abs(expected)).max(initial=0), (name, far)
        assert (np.isnan(found) == np.isnan(expected)).all(), name


@pytest.mark.skipif(not accelerator.WANTED, reason="a real device is compared")
def test_the_device_is_one():
    """What the other tests rest on: its tensors do not mix, it tells its backward pass to another
    thread, and its fused attention has no second derivative.
    """
    here, there = torch.ones(2, 3), torch.ones(2, 3).to(accelerator.NAME)
    with pytest.raises(RuntimeError, match="found at least two devices"):
        there + here
    with pytest.raises(RuntimeError):
        there.numpy()
    assert torch.equal((there[:, torch.tensor([0, 2])] * torch.tensor(2.0)).cpu(), 2 * here[:, :2])
    q = torch.randn(1, 1, 3, 4).to(accelerator.NAME).requires_grad_()
    mixed = torch.nn.functional.scaled_dot_product_attention(q, q, q)
    (gradient,) = torch.autograd.grad(mixed.sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        torch.autograd.grad(gradient.sum(), q)
    with torch.autocast(accelerator.NAME, torch.bfloat16):
        assert (there @ there.T).dtype == torch.bfloat16


def test_the_runbook_needs_no_peer_and_keeps_out_of_a_real_devices_way():
    """perf/gpu.py where only the project is installed; PyTorch asks the registered device for
    pinned memory, so that beside a card the make-believe one would be asked for it.
    """
    looks = (
        "import sys; sys.modules['higher'] = None; sys.path[:0] = ['perf', 'tests']\n"
        "import gpu, accelerator, torch\n"
        "assert torch.utils.backend_registration._privateuse1_backend_name != accelerator.NAME"
    )
    env = os.environ | {"ACCELERATOR": "cuda"}
    subprocess.run([sys.executable, "-c", looks], check=True, cwd=tiny.ROOT, env=env)


def test_features_of_pairs(tiny_world, monkeypatch, tmp_path):
    one, other = on_both(
        monkeypatch,
        tmp_path,
        lambda out: tiny.stage_in(
            tiny_world,
            "features",
            *(
                "--pairs",
                tiny_world / "pairs.parquet",
                "--shards",
                tiny_world / "shards",
                "--out",
                out,
            ),
        ),
    )
    assert_same(one, other, 2e-3)


def test_sentence_embeddings(tiny_world, monkeypatch, tmp_path):
    one, other = on_both(
        monkeypatch,
        tmp_path,
        lambda out: tiny.stage_in(
            tiny_world, "embed", "--kept", tiny_world / "kept.parquet", "--out", out
        ),
    )
    assert_same(one, other, 2e-3)


@pytest.mark.parametrize("script, name", [("benchmark", "whole"), ("labelled", "small")])
def test_features_of_datasets(tiny_world, monkeypatch, tmp_path, script, name):
    one, other = on_both(
        monkeypatch,
        tmp_path,
        lambda out: tiny.stage_in(tiny_world, script, "--name", name, "--out", out),
    )
    assert_same(one, other, 2e-3)


@pytest.mark.parametrize("name", tiny.DIRECT)
def test_starts(tiny_world, monkeypatch, tmp_path, name):
    one, other = on_both(
        monkeypatch,
        tmp_path,
        lambda out: tiny.stage_in(tiny_world, "start", "--name", name, "--out", out),
    )
    assert_same(one, other, 0.0)


@pytest.mark.parametrize("name", tiny.META)
def test_meta_training(tiny_world, monkeypatch, tmp_path, name):
    one, other = on_both(monkeypatch, tmp_path, lambda out: tiny.metatrain(tiny_world, name, out))
    assert_same(one, other, 1e-3, 1e-7)


@pytest.mark.parametrize("name", tiny.IN_BF16)
def test_meta_training_in_bf16_with_recompute(tiny_world, monkeypatch, tmp_path, name):
    """Texts, and CoCoOp's pictures, go through the tower in parts, which run again backwards too.
    The two round other products to 16 bits, so that only the direction of what was learned is
    the same, and its length about.
    """
    for module in (text, cocoop):
        monkeypatch.setattr(module, "TEXTS_AT_ONCE", 4)
    one, other = on_both(
        monkeypatch, tmp_path, lambda out: tiny.metatrain(tiny_world, name, out, params="bf16.yaml")
    )
    start = {}
    monkeypatch.setenv("DEVICE", "cpu")
    for leaf, values in initial(tiny_world, name).items():
        start[f"prompt.safetensors: {leaf}"] = values.numpy()
    assert start
    steps = [np.concatenate([(f[k] - start[k]).ravel() for k in start]) for f in (one, other)]
    lengths = [np.linalg.norm(step) for step in steps]
    assert steps[0] @ steps[1] > 0.97 * lengths[0] * lengths[1] > 0
    assert lengths[0] == pytest.approx(lengths[1], rel=0.3)


def initial(tiny_world, name):
    """θ before meta-training."""
    backbone = load_backbone(tiny_world / "backbone")
    about = {"episodes": "small"} | tiny.META[name]
    return initial_tokens(backbone, MetaMethod(**about), 4, torch.Generator().manual_seed(1))[1]


@pytest.mark.parametrize("name", [*tiny.DIRECT, *tiny.META])
def test_tuning_and_evaluation(tiny_world, starts, monkeypatch, tmp_path, name):
    def work(out):
        tiny.stage_in(
            tiny_world,
            "tune",
            *("--name", "whole", "--start", starts / name),
            *(
                "--seed",
                1,
                "--batch",
                tiny_world / "batch.json",
                "--benchmark",
                tiny_world / "benchmarks" / "whole",
                "--out",
                out / "tuned" / "whole" / "1",
            ),
        )
        tiny.stage_in(
            tiny_world,
            "evaluate",
            *("--tuned", out / "tuned", "--benchmarks", tiny_world / "benchmarks"),
            *("--out", out / "scores"),
        )

    one, other = on_both(monkeypatch, tmp_path, work)
    assert_same(one, other, 1e-3)


def test_zero_shot(tiny_world, monkeypatch, tmp_path):
    one, other = on_both(
        monkeypatch,
        tmp_path,
        lambda out: tiny.stage_in(
            tiny_world,
            "zero_shot",
            *("--name", "clip", "--benchmarks", tiny_world / "benchmarks", "--out", out),
        ),
    )
    assert_same(one, other, 0.0)


def test_studies(tiny_world, monkeypatch, tmp_path):
    def work(out):
        common = (
            "--seed",
            1,
            "--batch",
            tiny_world / "batch.json",
            "--benchmarks",
            tiny_world / "benchmarks",
        )
        tiny.stage_in(
            tiny_world, "study_direct", "--name", "joint", *common, "--out", out / "direct"
        )
        tiny.stage_in(
            tiny_world,
            "study_meta",
            *("--name", "unigram", *common, "--episodes", tiny_world / "episodes"),
            *("--out", out / "meta"),
        )

    one, other = on_both(monkeypatch, tmp_path, work)
    assert_same(one, other, 1e-3, 1e-7)


@pytest.mark.parametrize("name", [*tiny.DIRECT, *tiny.META])
def test_the_served_classifier(tiny_world, starts, monkeypatch, name):
    found = []
    pictures = [tiny.jpeg(number, number % 4, 0) for number in range(5)]
    for device in DEVICES:
        monkeypatch.setenv("DEVICE", device)
        found.append(
            Classifier(starts / name, tiny_world / "backbone").predict(pictures, tiny.CLASSES)
        )
    for one, other in zip(*found, strict=True):
        assert one["label"] == other["label"]
        assert one["probability"] == pytest.approx(other["probability"], rel=1e-3)
