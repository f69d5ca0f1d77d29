"""Linear heads of the face: how far names are trusted, and what pictures add."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from test_face import BACKBONE, CLASSES, few_steps, picture, save_pictures, start  # noqa: F401

from gram import InputError, PromptClassifier, budget, heads, prompted
from gram.inputs import collected
from gram.methods import candidates, unmeasured
from gram.prompted import Learned, Seen, Task
from pipeline.clip.backbone import load_backbone
from pipeline.prompts import METHODS
from pipeline.prompts.starts import Start, save_start

SCALE = 20.0


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    return save_pictures(tmp_path_factory.mktemp("own") / "pictures")


@pytest.fixture(scope="module")
def visual(tmp_path_factory):
    """A start whose tokens stand among the patches."""
    theta = METHODS["vpt"](load_backbone(BACKBONE)).initial(4, torch.Generator().manual_seed(3))
    folder = tmp_path_factory.mktemp("start") / "vpt"
    save_start(Start("vpt", 1, theta, {}, "none"), folder)
    return folder


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def cloud(rng, centres, each, spread):
    labels = np.repeat(np.arange(len(centres)), each)
    return unit(centres[labels] + spread * rng.normal(size=(len(labels), centres.shape[1]))), labels


def task_of(matrix):
    """A task whose names gave this head, without a backbone behind it."""
    made = Task(SimpleNamespace(logit_scale=SCALE), tuple("abcd"), "{}", None, 1)
    made.__dict__["zero_shot"] = Learned(torch.from_numpy(matrix).float(), {}, None)
    return made


def seen_of(features):
    return Seen(torch.from_numpy(features).float()[:, None], lambda i: None)


def accuracy(learned, features, labels):
    return ((features @ learned.matrix.numpy().T).argmax(axis=1) == labels).mean()


@pytest.mark.parametrize("pull", [0.003, 0.3])
def test_a_head_from_nothing_is_scikit_learns(pull):
    rng = np.random.default_rng(1)
    features, labels = cloud(rng, unit(rng.normal(size=(4, 16))), 6, 0.2)
    found = heads.moved(np.zeros((4, 16)), features, labels, pull)
    strength = 4 / (2 * pull * len(labels))
    wanted = LogisticRegression(C=strength, fit_intercept=False, tol=1e-8, max_iter=5000)
    assert np.allclose(found, wanted.fit(features, labels).coef_, atol=2e-2 * np.abs(found).max())


def test_a_head_rests_where_the_pull_and_the_pictures_balance():
    """The gradient of what `moved` promises to minimise, by autograd."""
    rng = np.random.default_rng(2)
    first = 5 * rng.normal(size=(4, 16))
    features, labels = cloud(rng, unit(rng.normal(size=(4, 16))), 6, 0.2)
    found = torch.tensor(heads.moved(first, features, labels, 0.01), requires_grad=True)

    def loss(head):
        fit = torch.nn.functional.cross_entropy(
            torch.from_numpy(features) @ head.T, torch.from_numpy(labels)
        )
        return fit + 0.01 / 4 * (head - torch.from_numpy(first)).square().sum()

    loss(found).backward()
    assert found.grad.abs().max() < 1e-4
    assert loss(found) < loss(torch.from_numpy(first)) - 0.05


def test_names_are_trusted_as_far_as_the_labels_bear_them_out():
    rng = np.random.default_rng(3)
    centres = unit(rng.normal(size=(4, 32)))
    features, labels = cloud(rng, centres, 1, 0.02)  # one picture per class tells it

    def trust(matrix):
        of = torch.from_numpy(matrix).float()
        return heads.trust_in_names(task_of(matrix), of, seen_of(features), torch.tensor(labels))

    assert trust(centres) == 1.0
    assert trust(centres[[1, 2, 3, 0]]) < 0.05
    halfway = unit(centres + 1.1 * centres[[1, 2, 3, 0]])  # a little nearer to the wrong class
    assert 0.1 < trust(halfway) < 0.9


@pytest.mark.parametrize("each", [1, 4])
def test_names_that_mislead_cost_little_and_good_ones_are_kept(each):
    rng = np.random.default_rng(4)
    centres = unit(rng.normal(size=(4, 32)))
    right, wrong = centres, centres[[1, 2, 3, 0]]
    pictures = cloud(rng, centres, each, 0.25)
    tests = cloud(rng, centres, 200, 0.25)
    given = (seen_of(pictures[0]), torch.from_numpy(pictures[1]))
    misled = heads.probe(task_of(wrong), *given)
    plain = heads.logistic(task_of(wrong), *given)
    led = heads.probe(task_of(right), *given)
    assert accuracy(misled, *tests) > accuracy(plain, *tests) - 0.03
    assert accuracy(led, *tests) > accuracy(plain, *tests) + (0.05 if each == 1 else 0)
    # names count for nothing in `logistic`, whichever they are
    other = heads.logistic(task_of(right), *given).matrix
    assert torch.allclose(plain.matrix - plain.matrix.mean(0), other - other.mean(0), atol=1e-4)
    level = plain.trust * torch.from_numpy(wrong).float().mean(0)  # names to come stand on it
    assert torch.allclose(plain.matrix.mean(0), level, atol=1e-4)


def test_one_picture_per_class_is_worth_a_probe(own, start, visual):  # noqa: F811
    """It beats the names, which do not tell the colours."""
    files = [own / name / "0.png" for name in CLASSES]
    others = [picture(colour, seed) for colour in CLASSES.values() for seed in range(20, 28)]
    truth = [name.replace("_", " ") for name in CLASSES for _ in range(8)]
    labels = [name.replace("_", " ") for name in CLASSES]

    def taken(**settings):
        return PromptClassifier(BACKBONE, folds=0, **settings).fit(files, labels)

    for settings, method in (
        ({"start": start}, "start-probe"),
        ({}, "probe"),
        ({"start": visual}, "probe"),
    ):
        made = taken(**settings)
        assert made.method_ == method and "nothing was measured" in made.sentence_
        assert made.score(others, truth) > 0.9
    assert taken(method="zero-shot").score(others, truth) < 0.7


def test_a_start_of_visual_tokens_has_no_head_to_probe_from(own, visual):
    with pytest.raises(InputError, match="tokens stand in the text alone.*take 'probe'"):
        PromptClassifier(BACKBONE, visual, "start-probe", folds=0).fit(own)
    for prompt, there in (("coop", True), ("vpt", False), ("joint", False), ("cocoop", False)):
        made = Start(prompt, 1, {}, {}, "none")
        assert ("start-probe" in candidates(made)) == there
        assert unmeasured(made) == ("start-probe" if there else "probe")


@pytest.mark.parametrize("method", ["probe", "start-probe", "logistic"])
def test_names_to_come_are_trusted_as_far_as_those_that_were_there(
    method,
    own,
    start,  # noqa: F811
    tmp_path,
):
    """The colours bear no name out, so one more must not take the pictures from the others."""
    made = PromptClassifier(BACKBONE, start, method, folds=0).fit(own)
    assert made.trust_ < 0.5
    made.save(tmp_path / "m")
    assert json.loads((tmp_path / "m" / "config.json").read_text())["trust"] == made.trust_
    for model in (made, PromptClassifier.load(tmp_path / "m")):
        wider = model.with_classes(["horse", "desk"])
        assert (wider.predict(own) == made.predict(own)).all()


def test_a_model_from_before_there_was_trust_is_read(own, tmp_path):
    made = PromptClassifier(BACKBONE, method="zero-shot", folds=0).fit(own)
    made.save(tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert config.pop("trust") == 1.0
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    assert PromptClassifier.load(tmp_path / "m").trust_ == 1.0


def test_texts_are_encoded_once_for_all_folds(own, monkeypatch):
    """A thousand names in a large text tower take minutes."""
    asked = []
    encoded = prompted.class_matrix
    monkeypatch.setattr(
        prompted, "class_matrix", lambda task, *rest: asked.append(task) or encoded(task, *rest)
    )
    monkeypatch.setattr("gram.methods.candidates", lambda _: ["zero-shot", "probe", "logistic"])
    assert PromptClassifier(BACKBONE).fit(own).folds_ == 4
    assert len(asked) == 1


def test_the_time_told_before_counts_the_heads_of_all_folds(own):
    """Ten thousand pictures of a hundred classes keep a head busy for a while."""
    settings = PromptClassifier(BACKBONE, folds=4)
    ready = settings.prepared(collected(own, None))
    ready = replace(ready, methods=["zero-shot", "probe", "logistic"])
    measured = budget._costs(ready)
    assert 0 < measured.head < 5 and measured.coop_step == 0
    costs = budget.Costs(0.0, 0.0, 0.0, 0.0, 0.0, head=3.0)
    # two heads, each four times on nine of twelve pictures and once on all
    assert budget._seconds(ready, ready.methods, costs) == pytest.approx(2 * 3 * (4 * 9 / 12 + 1))
    bare = replace(ready, methods=["zero-shot"])
    assert budget._costs(bare).head == 0
