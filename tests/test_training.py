"""The meta-training loop: exact resume, and a clear stop when numbers go wrong."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from conftest import ROOT

from pipeline.artifacts import to_vectors, write_table
from pipeline.clip.backbone import load_backbone
from pipeline.episodes.schemas import episodes_schema
from pipeline.errors import InputError
from pipeline.gram.meta import InnerStep
from pipeline.gram.params import Outer, Regulator
from pipeline.gram.regulator import initial_phi
from pipeline.gram.train import meta_train
from pipeline.prompts.coop import CoOp

NAMES = ["lion", "tiger", "bus", "pizza", "guitar"]


@pytest.fixture(scope="module")
def method():
    return CoOp(load_backbone(ROOT / "demo" / "backbone"))


@pytest.fixture(scope="module")
def episodes(tmp_path_factory):
    """Twelve 3-way tasks with random picture features: hard, so that there is something to learn."""
    folder, rng = tmp_path_factory.mktemp("episodes"), np.random.default_rng(0)
    schema = episodes_schema(128)
    rows = []
    for task in range(12):
        names = rng.choice(NAMES, 3, replace=False)
        for role, count in (("support", 2), ("query", 3)):
            rows += [(task, role, k, names[k], k, 0, "key") for k in range(3) for _ in range(count)]
    x = rng.normal(size=(len(rows), 128))
    columns = [pa.array(c, type=f.type) for c, f in zip(zip(*rows), schema)]
    table = pa.table([*columns, to_vectors(x / np.linalg.norm(x, axis=1, keepdims=True)), pa.array([b""] * len(rows), pa.binary())], schema=schema)
    write_table(table, folder / "00000.parquet", schema, row_group_size=15)
    return folder


class Stop(Exception):
    pass


def train(method, episodes, work, steps=10, stop=None, **changes):
    def progress(items, label, total=None):
        import tqdm

        def some():
            for i in items:
                if i == stop:
                    raise Stop
                yield i

        return tqdm.tqdm(some(), disable=True)

    theta = method.initial(4, torch.Generator())
    phi = initial_phi(theta, Regulator(input_scale="rms", bias=2.0))
    for leaf in (*theta.values(), *phi.values()):
        leaf.requires_grad_()
    settings = dict(inner=InnerStep(0.1, 1, True, "rms"), outer=Outer(clip_norm=1.0, checkpoint_every=3), outer_lr=0.01, regulator_lr=0.01, batch=4, steps=steps)
    curve = meta_train(method, theta, phi, episodes, work, progress=progress, **(settings | changes))
    return theta, phi, curve


def test_resumed_training_is_the_same_to_the_bit(method, episodes, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    theta, phi, curve = train(method, episodes, tmp_path / "a")
    with pytest.raises(Stop):
        train(method, episodes, tmp_path / "b", stop=8)  # the checkpoint is at step 6
    again, phi_again, curve_again = train(method, episodes, tmp_path / "b")
    assert torch.equal(theta["text"], again["text"])
    assert all(torch.equal(phi[k], phi_again[k]) for k in phi)
    assert curve == curve_again and len(curve) == 10


def test_learning_changes_tokens_and_regulator_and_lowers_the_loss(method, episodes, tmp_path):
    theta, phi, curve = train(method, episodes, tmp_path, steps=30)
    assert not torch.equal(theta["text"], method.initial(4, torch.Generator())["text"])
    assert phi["text.W_beta"].abs().max() > 0 and phi["text.W_gamma"].abs().max() > 0
    assert np.mean([c["query_loss"] for c in curve[-6:]]) < np.mean([c["query_loss"] for c in curve[:6]])


def test_numbers_that_are_not_finite_name_the_tasks(method, episodes, tmp_path):
    with pytest.raises(InputError, match=r"not finite at meta-step \d+ \(tasks 0, 1, 2, 3\).*lower 'inner_lr'"):
        train(method, episodes, tmp_path, inner=InnerStep(float("inf"), 1, True, "rms"))


def test_fewer_tasks_than_a_batch(method, episodes, tmp_path):
    with pytest.raises(InputError, match="holds 12 tasks, fewer than one batch of 'meta_batch' = 13"):
        train(method, episodes, tmp_path, batch=13)
