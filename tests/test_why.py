"""The experiments of study/why.py: what they take apart, and what choices are made on."""

import importlib
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import torch
from conftest import ROOT

from pipeline.gram.params import Regulator
from pipeline.gram.regulator import initial_phi, regulate
from pipeline.params import read_yaml
from pipeline.world.concepts import load_concepts
from pipeline.world.sites import choose_classes


@pytest.fixture
def why(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "study")
    return importlib.import_module("why")


def classes(name, drawn, seed=1):
    """Of a drawn benchmark, as its stage chooses them."""
    members = [c for c in load_concepts(drawn["concepts"]) if c.family in drawn["families"]]
    rng = np.random.default_rng(seed + 1000 + sum(map(ord, name)))
    return {c.name for c in choose_classes(members, drawn["classes"], rng, name)}


def test_no_reported_benchmark_has_a_class_of_a_development_benchmark(monkeypatch):
    monkeypatch.chdir(ROOT)
    params, own = read_yaml(ROOT / "params.yaml"), read_yaml(ROOT / "study" / "development.yaml")
    reported = set()
    for name, drawn in params["world"]["benchmarks"].items():
        if any(b["path"].endswith(f"/{name}.zip") for b in params["benchmarks"].values()):
            reported |= classes(name, drawn, params["seed"])
    found = [classes(name, drawn) for name, drawn in own["world"]["benchmarks"].items()]
    assert len(reported) > 60 and all(len(of_one) == 12 for of_one in found)
    assert not set.union(*found) & reported


def test_a_regulator_taken_apart(why):
    generator = torch.Generator().manual_seed(0)
    tokens = {"text": torch.randn(3, 5, generator=generator)}
    settings = Regulator(input_scale="none", bias=0.5, weight_std=0.3, bias_per_token=False)
    phi = initial_phi(tokens, settings, generator)
    phi["text.b_beta"] += 0.2
    g = torch.randn(2, 3, 5, generator=generator)
    gamma = torch.tanh(g @ phi["text.W_gamma"].T + phi["text.b_gamma"])
    beta = torch.tanh(g @ phi["text.W_beta"].T + phi["text.b_beta"])
    regulated = lambda phi: regulate(phi, {"text": g})["text"]
    torch.testing.assert_close(regulated(phi), gamma * g + beta)
    torch.testing.assert_close(regulated(why.without(phi, "beta", 0.0)), gamma * g)
    torch.testing.assert_close(regulated(why.without(phi, "gamma", why.SATURATED)), g + beta)


def test_experiments_are_averaged_over_seeds_alone(why):
    rows = [
        {"rate": rate, "start": start, "seed": seed, "H": seed * 10 + rate}
        for rate in (0.002, 0.02)
        for start in ("host", "gram")
        for seed in (1, 3)
    ]
    found = why.table(rows)
    assert found.select("rate", "start", "seeds").rows() == [
        (rate, start, 2) for rate in (0.002, 0.02) for start in ("host", "gram")
    ]
    assert found["H"].to_list() == pytest.approx([20.002, 20.002, 20.02, 20.02])
    assert found["H_sd"].to_list() == pytest.approx([np.std([10, 30], ddof=1)] * 4)


def test_the_logit_scale_is_the_backbone_s_own_again(why):
    backbone = SimpleNamespace(model=SimpleNamespace(logit_scale=torch.tensor(2.0)))
    with pytest.raises(ZeroDivisionError), why.scaled(backbone, 0.5):
        assert backbone.model.logit_scale.exp() == pytest.approx(0.5 * np.exp(2.0))
        1 / 0  # noqa: B018
    assert backbone.model.logit_scale == 2.0


def test_true_styles_are_domains_of_the_same_topics(why, tmp_path):
    """Every pair keeps its topic; its domain is the number of its style."""
    keys = [f"k{i}" for i in range(4)]
    pl.DataFrame({"key": keys, "url": [f"{k}.jpg" for k in keys]}).write_parquet(
        tmp_path / "captions.parquet"
    )
    (tmp_path / "world" / "demo").mkdir(parents=True)
    styles = {"url": [f"{k}.jpg" for k in keys], "style": ["night", "flat", "night", "sketch"]}
    pl.DataFrame(styles).write_parquet(tmp_path / "world" / "demo" / "truth.parquet")
    topics = pl.DataFrame(
        {"key": keys[:3], "topic": [4, 4, 5], "domain": [0, 1, 0]},
        schema={"key": pl.String, "topic": pl.Int32, "domain": pl.Int32},
    )
    why.write_table(topics.to_arrow().cast(why.DOMAINS), tmp_path / "domains.parquet", why.DOMAINS)
    found = pl.read_parquet(why.true_styles(tmp_path, tmp_path / "styles.parquet"))
    assert found.sort("key").rows() == [("k0", 4, 1), ("k1", 4, 0), ("k2", 5, 1)]


def world_of(why, prompt, rates, factor_of):
    """A world whose parameters are these."""
    world, method = why.World(ROOT, ROOT, "unigram", [1]), SimpleNamespace(prompt=prompt)
    world.__dict__["params"] = SimpleNamespace(rates=rates, factor_of=factor_of, method=method)
    return world


@pytest.mark.parametrize(("prompt", "lr"), [("joint", 0.25), ("coop", 1.0)])
def test_experiments_tune_as_the_stage_does(why, prompt, lr):
    """Visual tokens at their own rate, unless the experiment is about rates."""
    rates = why.Rates(lr=1.0, warmup_lr=1e-5, momentum=0.9, weight_decay=0.0)
    world = world_of(why, prompt, rates, {"joint": 0.25})
    assert world.tuning(7) == why.Sgd(**rates.model_dump() | {"lr": lr}, batch=7)
    assert world.tuning(7, 0.5).lr == 0.5


def test_a_task_is_tuned_on_as_many_steps_as_a_benchmark(why, tiny_world, starts, monkeypatch):
    """On the task's own support: its loss falls, and the more the larger the rate."""
    monkeypatch.setenv("DEVICE", "cpu")
    start = why.load_start(starts / "unigram")
    method = why.method_of(start.about, why.load_backbone(tiny_world / "backbone"), "{}")
    rates = why.Rates(lr=1.0, warmup_lr=1e-5, momentum=0.9, weight_decay=0.0)
    world = world_of(why, "joint", rates, {"joint": 0.1})
    task = next(why.read_episodes(tiny_world / "episodes" / "small" / "1", pictures=True))
    pictures = why.shown(method, [task])
    batch = why.load_batch(method, [task], pictures)
    draw = why.Draw([pictures[0][0]] * 8, task.support_labels, list(task.names))

    def loss(lr):
        tokens = why.placed(why.stretched(world, method, start, draw, lr), torch.device("cpu"))
        logits = method.logits(tokens, batch.classes, batch.support)
        return float(why.cross_entropy(logits, batch.support_labels))

    found = [loss(lr) for lr in (1e-9, 0.005, 0.05)]
    assert found[2] < found[1] < found[0], found
