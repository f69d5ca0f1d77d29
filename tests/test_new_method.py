"""A prompt method that nobody foresaw: a few lines here, and meta-training, regulator and tuning
take it as it is.
"""

import numpy as np
import pytest
import torch
from conftest import ROOT
from test_training import WAYS, cosine, one_step, outer, start, tensors_of, train, write_episodes
from torch.nn import functional as F

from pipeline.benchmarks.cache import Draw
from pipeline.benchmarks.params import Sgd
from pipeline.clip.backbone import load_backbone, open_picture
from pipeline.episodes.shards import read_episodes
from pipeline.gram.meta import InnerStep
from pipeline.gram.regulator import regulate
from pipeline.gram.tune import tune
from pipeline.prompts import METHODS
from pipeline.prompts.base import FixedText, random_rows
from pipeline.prompts.starts import Start, load_start, method_of, save_start


class Shift(FixedText):
    """One learned vector, added to every picture's cached feature."""

    def initial(self, count, generator, words=None):
        return {"shift": random_rows(1, self.backbone.dim, generator, self.backbone.device)}

    def image_features(self, tokens, seen):
        return F.normalize(seen + tokens["shift"], dim=-1)


class Tint(FixedText):
    """A learned colour and a learned border of rows, added to every picture's pixels."""

    sees_pixels = True

    def initial(self, count, generator, words=None):
        return {
            "colour": torch.zeros(3, 1),
            "border": random_rows(3 * count, 48, generator, self.backbone.device),
        }

    def image_features(self, tokens, seen):
        T, n = seen.shape[:2]
        border = F.pad(
            tokens["border"].unflatten(1, (3, -1)), (0, 0, 0, 48 - tokens["border"].shape[1] // 3)
        )
        painted = seen + (tokens["colour"].unsqueeze(-1) + border).unsqueeze(1)
        return self.backbone.model.encode_image(painted.flatten(0, 1), normalize=True).unflatten(
            0, (T, n)
        )


NEW = {"shift": Shift, "tint": Tint}


@pytest.fixture(scope="module")
def backbone():
    return load_backbone(ROOT / "demo" / "backbone")


@pytest.fixture(scope="module")
def episodes(tmp_path_factory):
    return write_episodes(tmp_path_factory.mktemp("episodes"))


def few_shots(method, episodes):
    """The first task's support as a dataset: names, views (n, …) and labels."""
    task = next(read_episodes(episodes, pictures=True))
    views = (
        np.stack(
            [method.backbone.test_view(open_picture(p)).numpy() for p in task.support_pictures]
        )
        if method.sees_pixels
        else task.support
    )
    return task.names, views, task.support_labels


@pytest.mark.parametrize("name", NEW)
def test_meta_training_takes_it(backbone, episodes, tmp_path, name):
    method = NEW[name](backbone)
    numbers, batch, rate = (set(range(12)), 12, 0.005) if name == "shift" else ({0, 1}, 2, 0.05)
    theta, phi, curve = train(
        method, episodes, tmp_path / "work", steps=7, batch=batch, outer_lr=rate, regulator_lr=rate
    )
    begin = tensors_of(*start(method))
    assert phi.keys() == {
        f"{k}.{part}" for k in theta for part in ("W_gamma", "b_gamma", "W_beta", "b_beta")
    }
    for key, after in tensors_of(theta, phi).items():
        assert not torch.equal(after, begin[key]), key
    first, last = (
        one_step(method, episodes, numbers, theta_phi=at).figures["query_loss"]
        for at in (start(method), (theta, phi))
    )
    assert last < first and curve[0]["query_loss"] == pytest.approx(first, rel=1e-5)
    assert curve[0]["raw_agreement"] != curve[0]["regulated_agreement"]


def test_its_meta_gradient_is_exact(backbone, episodes):
    """Second order and through R^φ, against nested gradients of a plain function."""
    method, inner = Shift(backbone), InnerStep(0.5, 2, True, "rms")
    found = one_step(method, episodes, {2}, inner=inner)
    task = list(read_episodes(episodes))[2]
    text = backbone.model.encode_text(
        backbone.tokenize([f"a photo of a {n}." for n in task.names]), normalize=True
    )

    def loss(tokens, features, labels):
        images = F.normalize(torch.from_numpy(features) + tokens["shift"], dim=-1)
        return F.cross_entropy(backbone.logit_scale * images @ text.T, torch.from_numpy(labels))

    def query_loss(tokens, phi):
        for _ in range(2):
            g = torch.func.grad(loss)(tokens, task.support, task.support_labels)
            step = regulate(phi, {k: v.unsqueeze(0) for k, v in g.items()}, "rms")
            tokens = {k: tokens[k] - 0.5 * step[k][0] for k in tokens}
        return loss(tokens, task.query, task.query_labels)

    theta, phi = torch.func.grad(query_loss, argnums=(0, 1))(
        *({k: v.detach() for k, v in part.items()} for part in start(method))
    )
    assert found.figures["query_loss"] == pytest.approx(query_loss(*start(method)).item(), rel=1e-4)
    for ours, expected in ((found.theta, theta), (found.phi, phi)):
        assert cosine(ours, expected) > 1 - 1e-6
        for key in expected:
            assert ours[key].norm().item() == pytest.approx(expected[key].norm().item(), rel=1e-3)


@pytest.mark.parametrize("name", NEW)
def test_tuning_takes_it(backbone, episodes, name):
    method = NEW[name](backbone)
    names, views, labels = few_shots(method, episodes)
    begin, phi = ({k: v.detach() for k, v in part.items()} for part in start(method))
    settings = Sgd(lr=0.002, warmup_lr=0.001, momentum=0.9, weight_decay=0.1, batch=100)

    def loss(tokens):
        tokens = {k: v.unsqueeze(0) for k, v in tokens.items()}
        logits = method.logits(
            tokens, method.prepare([names]), method.look(torch.from_numpy(views).unsqueeze(0))
        )[0]
        return F.cross_entropy(logits, torch.from_numpy(labels))

    # One epoch is one step here: θ − warmup_lr · (R^φ(g) + weight_decay · θ).
    one = Draw([views], labels, names)
    for regulator in (phi, {}):
        kept = tune(method, Start(name, 1, begin, regulator, "rms"), one, settings, seed=0)
        leaves = {k: v.clone().requires_grad_() for k, v in begin.items()}
        g = dict(zip(leaves, torch.autograd.grad(loss(leaves), list(leaves.values()))))
        g = regulate(regulator, {k: v.unsqueeze(0) for k, v in g.items()}, "rms")
        for key, before in begin.items():
            expected = before - 0.001 * (g[key][0] + 0.1 * before)
            torch.testing.assert_close(kept[0][key], expected)

    six = Draw([views] * 6, labels, names)
    kept = tune(method, Start(name, 1, begin, phi, "rms"), six, settings, seed=0)
    with torch.no_grad():
        assert len(kept) == 6 and loss(kept[-1]) < loss(kept[0]) < loss(begin)
    assert set(labels) == set(range(WAYS))


def test_its_start_is_stored_and_found_again(backbone, tmp_path, monkeypatch):
    """One entry in METHODS is all that files need to know it."""
    monkeypatch.setitem(METHODS, "shift", Shift)
    theta, phi = start(Shift(backbone))
    save_start(Start("shift", 1, theta, phi, "rms"), tmp_path)
    found = load_start(tmp_path)
    again = method_of(
        {"prompt": found.prompt, "depth": str(found.depth)}, backbone, "a drawing of a {}."
    )
    assert type(again) is Shift and again.template == "a drawing of a {}."
    assert (
        all(torch.equal(found.theta[k], theta[k]) for k in theta) and found.phi.keys() == phi.keys()
    )


def test_it_resumes_like_the_others(backbone, episodes, tmp_path):
    whole = train(
        Shift(backbone), episodes, tmp_path / "whole", steps=6, outer=outer(checkpoint_every=2)
    )
    train(Shift(backbone), episodes, tmp_path / "parts", steps=2, outer=outer(checkpoint_every=2))
    parts = train(
        Shift(backbone), episodes, tmp_path / "parts", steps=6, outer=outer(checkpoint_every=2)
    )
    assert whole[2] == parts[2] and all(torch.equal(whole[0][k], parts[0][k]) for k in whole[0])
