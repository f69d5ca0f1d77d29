"""The face's figures against other libraries, and by hand: intervals, calibration, prediction sets,
the choice among methods, and what is told of them.
"""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT
from scipy.stats import binomtest, norm
from test_face import BACKBONE, CLASSES, picture, save_pictures, scene
from test_face_heads import cloud, seen_of, task_of, unit

from gram import PromptClassifier, choice, heads, methods
from gram.budget import Costs, _seconds, _start_step, within
from gram.choice import choose, folds_of, held_out_logits
from gram.collection import Collection, read_collection
from gram.commands import Asked, evaluate_folder, predict_pictures
from gram.inputs import Prepared
from gram.looking import features_of_views
from gram.methods import STEPS
from gram.prompted import Learned, Seen, Task, context_of, features_of, logits_of
from gram.report import _wrong, confusions, figures, matrix, per_class
from gram.serve import Answers
from gram.trust import (
    calibration,
    calibration_error,
    chances,
    nonconformity,
    paired_interval,
    set_threshold,
    sets,
    share_interval,
    temperature_of,
)
from pipeline.benchmarks.cache import Draw
from pipeline.benchmarks.params import Sgd
from pipeline.benchmarks.views import AugmentedViews
from pipeline.clip.backbone import load_backbone
from pipeline.errors import InputError
from pipeline.gram.tune import tune
from pipeline.params import read_yaml
from pipeline.prompts import METHODS as PROMPTS
from pipeline.prompts.coop import CoOp
from pipeline.prompts.starts import Start

# --- intervals ---


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("level", [0.5, 0.68, 0.95])
def test_the_paired_interval_is_the_normal_one_for_many_pictures(level, seed):
    rng = np.random.default_rng(seed)
    better, worse = rng.random(900) < 0.8, rng.random(900) < 0.7
    difference = better.astype(float) - worse
    half = norm.ppf((1 + level) / 2) * difference.std() / np.sqrt(900)
    low, high = paired_interval(better, worse, level, seed)
    assert low == pytest.approx(difference.mean() - half, abs=0.12 * half)
    assert high == pytest.approx(difference.mean() + half, abs=0.12 * half)


@pytest.mark.parametrize(("right", "of"), [(0, 5), (5, 5), (1, 9), (37, 60), (700, 1000)])
def test_the_interval_of_a_share_is_scipys(right, of):
    wanted = binomtest(right, of).proportion_ci(0.95, method="wilson")
    assert share_interval(right, of) == pytest.approx((wanted.low, wanted.high), abs=1e-4)
    assert share_interval(0, 0) == (0.0, 1.0)


# --- probabilities ---


def test_probabilities_calibration_and_its_error_by_hand():
    assert chances(np.array([[2.0, 0.0]]), 2.0)[0, 0] == pytest.approx(1 / (1 + np.exp(-1)))
    sure = np.array([0.97, 0.95, 0.66, 0.62, 1.0, 0.55])
    told = np.stack([sure, 1 - sure], axis=1)
    truth = np.array([0, 1, 0, 0, 0, 1])  # right, wrong, right, right, right, wrong
    assert calibration(told, truth) == [
        {"pictures": 1, "confidence": pytest.approx(0.55), "accuracy": 0.0},
        {"pictures": 2, "confidence": pytest.approx(0.64), "accuracy": 1.0},
        {"pictures": 3, "confidence": pytest.approx(2.92 / 3), "accuracy": pytest.approx(2 / 3)},
    ]
    wanted = (1 * 0.55 + 2 * (1 - 0.64) + 3 * (2.92 / 3 - 2 / 3)) / 6
    assert calibration_error(told, truth) == pytest.approx(wanted)


@pytest.mark.parametrize("true", [1 / 3, 1.0, 10.0])
def test_the_temperature_is_where_the_likelihood_is_highest(true):
    rng = np.random.default_rng(5)
    logits = rng.normal(size=(500, 4)) * 3
    labels = np.array([rng.choice(4, p=row) for row in chances(logits, true)])
    found = temperature_of(logits, labels)

    def likelihood(temperature):
        return np.log(chances(logits, temperature)[np.arange(500), labels]).mean()

    assert 0.7 * true < found < 1.4 * true
    assert likelihood(found) > max(likelihood(0.98 * found), likelihood(1.02 * found))


def test_a_temperature_has_bounds():
    assert temperature_of(0.1 * np.eye(3), np.arange(3)) == pytest.approx(1 / 50, rel=1e-2)
    assert temperature_of(-10 * np.eye(3), np.arange(3)) == pytest.approx(50, rel=1e-2)


def test_prediction_sets_by_hand():
    told = np.array([[0.75, 0.25], [0.5, 0.5], [0.25, 0.75]])
    assert nonconformity(told, np.array([1, 0, 1])).tolist() == [0.25, 0.5, 0.75]
    assert sets(told, 0.25).tolist() == [[True, False], [False, False], [False, True]]
    assert sets(told, 0.5).tolist() == [[True, False], [True, True], [False, True]]
    nine = np.arange(1, 10) / 10
    assert [set_threshold(nine, c) for c in (0.05, 0.1, 0.5, 0.9, 0.91)] == [
        0.1,
        0.1,
        0.5,
        0.9,
        1.0,
    ]
    many = np.arange(1, 100) / 100  # 100 · 0.55 is a little more than 55 in floating point
    assert set_threshold(many, 0.55) == 0.55


# --- the choice ---


def test_folds_keep_the_shares_of_classes_and_follow_the_seed():
    labels = np.repeat([0, 1, 2], [30, 9, 6])
    parts = folds_of(labels, 3, 1)
    for train, test in parts:
        assert np.bincount(labels[test]).tolist() == [10, 3, 2]
        assert sorted([*train, *test]) == list(range(45))
    assert sorted(np.concatenate([test for _, test in parts])) == list(range(45))
    again, other = folds_of(labels, 3, 1), folds_of(labels, 3, 2)
    assert all((a[1] == b[1]).all() for a, b in zip(parts, again, strict=True))
    assert any((a[1] != b[1]).any() for a, b in zip(parts, other, strict=True))


def test_each_picture_is_judged_by_what_learned_from_the_others_alone(monkeypatch):
    """The method that learned as the k-th scores k; every picture says by which it was judged."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(2), 10)
    rows = torch.from_numpy(unit(rng.normal(size=(20, 8)))).float()
    backbone = SimpleNamespace(logit_scale=1.0, dim=8)
    task, known = Task(backbone, ("a", "b"), "{}", None, 1), []

    def learn(task, seen, given):
        known.append((seen.features[:, 0], given))
        return Learned(torch.full((2, 8), float(len(known))), {}, None)

    monkeypatch.setitem(methods.METHODS, "probe", learn)
    monkeypatch.setattr("gram.choice.features_of", lambda task, learned, seen: seen.features[:, 0])
    parts = folds_of(labels, 5, 1)
    seen = Seen(torch.stack([rows, -rows], dim=1), lambda i: None)
    logits = held_out_logits(task, "probe", seen, labels, parts, lambda: None)
    by = np.round(logits[:, 0] / rows.numpy().sum(axis=1)).astype(int)
    assert sorted(by) == sorted(list(range(1, 6)) * 4)
    for number, (features, given) in enumerate(known, 1):
        others = by != number
        assert torch.equal(features, rows[others]) and (given.numpy() == labels[others]).all()


def chosen(right_of, monkeypatch, n=400):
    labels, made = scene(right_of, n)
    monkeypatch.setattr("gram.choice.held_out_logits", lambda task, m, *_: made[m])
    return choose(Task(None, ("a", "b"), "{}", None, 1), list(right_of), None, labels, 4), made


def test_what_lies_behind_is_told_with_one_standard_error_to_each_side(monkeypatch):
    found, _ = chosen({"zero-shot": 0.5, "probe": 0.6, "coop": 0.9}, monkeypatch)
    for row, behind in zip(found.rows, (0.4, 0.3, 0.0), strict=True):
        error = np.sqrt(behind * (1 - behind) / 400)  # the better one is right wherever it is
        assert row["behind"] == pytest.approx((behind - error, behind + error), abs=0.12 * error)
    assert found.method == "coop"


def test_one_standard_error_decides(monkeypatch):
    """Of 100 pictures, 1 more is within it (0.01 ± 0.01), 4 more are not (0.04 ± 0.02)."""
    found, made = chosen({"zero-shot": 0.89, "probe": 0.9}, monkeypatch, 100)
    assert found.method == "zero-shot" and found.logits is made["zero-shot"]
    found, made = chosen({"zero-shot": 0.86, "probe": 0.9}, monkeypatch, 100)
    assert found.method == "probe" and found.logits is made["probe"]


def test_each_fold_is_told_apart(monkeypatch):
    found, made = chosen({"zero-shot": 0.7, "probe": 0.9}, monkeypatch, 60)
    labels = np.arange(60) % 2
    for row in found.rows:
        right = made[row["method"]].argmax(axis=1) == labels
        assert row["folds"] == [right[test].mean() for _, test in folds_of(labels, 4, 1)]
        assert len(set(row["folds"])) > 1


def test_of_equals_the_simplest_is_the_best(monkeypatch):
    found, _ = chosen({"zero-shot": 0.5, "probe": 0.9, "coop": 0.9}, monkeypatch)
    assert found.method == "probe" and "is the best" in found.sentence
    found, made = chosen({"zero-shot": 0.5, "probe": 0.89, "coop": 0.9}, monkeypatch, 100)
    low, high = found.rows[1]["behind"]
    assert found.method == "probe" and found.logits is made["probe"]
    words = f"the difference is {100 * low:.1f} to {100 * high:.1f} points"
    assert words in found.sentence and 0 <= low < 0.005 and 0.015 < high < 0.025


# --- heads and prompts ---


def with_other_views(seen, seed=9):
    """The same centres, and views that say nothing: a head is of the centres alone."""
    noise = np.random.default_rng(seed).normal(size=(len(seen), 3, seen.features.shape[-1]))
    noise = torch.nn.functional.normalize(torch.from_numpy(noise).float(), dim=-1)
    return Seen(torch.cat([seen.features, noise], dim=1), lambda i: None)


@pytest.mark.parametrize(("method", "pull"), [(heads.probe, 0.003), (heads.logistic, 0.03)])
def test_a_probe_balances_the_pictures_and_its_pull(method, pull):
    """At a minimum of mean cross-entropy + pull · |W − W₀|² / K in logits, by autograd; W₀ is the
    trusted prompt's head, of which plain regression has the mean alone.
    """
    rng = np.random.default_rng(6)
    centres = unit(rng.normal(size=(4, 16)))
    features, labels = cloud(rng, centres, 6, 0.4)
    named = unit(centres + 0.8 * rng.normal(size=centres.shape))
    seen, truth = with_other_views(seen_of(features)), torch.from_numpy(labels)
    learned = method(task_of(named), seen, truth)
    assert learned.trust == heads.trust_in_names(
        task_of(named), torch.from_numpy(named).float(), seen_of(features), truth
    )
    scale = 20.0
    first = learned.trust * scale * torch.from_numpy(named)
    if method is heads.logistic:
        first = first.mean(dim=0).expand_as(first)
    head = (scale * learned.matrix.double()).requires_grad_()
    fit = torch.nn.functional.cross_entropy(torch.from_numpy(features) @ head.T, truth)
    (fit + pull / 4 * (head - first).square().sum()).backward()
    of_fit = torch.autograd.functional.jacobian(
        lambda w: torch.nn.functional.cross_entropy(torch.from_numpy(features) @ w.T, truth), first
    )
    assert head.grad.norm() < 0.02 * of_fit.norm()


def test_views_are_of_the_seed_and_each_another():
    backbone = load_backbone(BACKBONE)
    pictures = [picture(CLASSES["lion"], 3), picture(CLASSES["bus"], 4)]
    found = features_of_views(backbone, iter(pictures), 3, 7)
    assert found.shape[:2] == (2, 4)
    for i, one in enumerate(pictures):
        views = AugmentedViews(backbone, lambda _: one, 0, 3, 7)
        wanted = [backbone.test_view(one), *(views.view(epoch, i) for epoch in range(3))]
        with torch.inference_mode():
            rows = backbone.model.encode_image(torch.stack(wanted), normalize=True)
        assert torch.allclose(found[i], rows.float(), atol=1e-4)
        assert float((rows @ rows.T).fill_diagonal_(0).max()) < 1 - 1e-6  # none stands twice


@pytest.mark.parametrize(("pictures", "epochs"), [(20, 6), (64, 3), (400, 2)])
def test_prompts_are_tuned_as_the_protocol_says(pictures, epochs):
    """Centres and views in turn, the demo's rates, batches of 32; what is taken is the last."""
    backbone = load_backbone(BACKBONE)
    rng = np.random.default_rng(1)
    rows = torch.nn.functional.normalize(
        torch.from_numpy(rng.normal(size=(pictures, 3, backbone.dim))).float(), dim=-1
    )
    labels = torch.arange(pictures) % 2
    task = Task(backbone, ("lion", "bus"), "a photo of a {}.", None, 5)
    start = Start(
        "coop", 1, CoOp(backbone).initial(4, torch.Generator().manual_seed(3)), {}, "none"
    )
    learned = methods.tuned(task, start, Seen(rows, lambda i: None), labels, 6)
    demo = read_yaml(ROOT / "params.yaml")["tuning"]
    rates = {key: demo[key] for key in ("lr", "warmup_lr", "momentum", "weight_decay")}
    draw = Draw([rows[:, e % 3].numpy() for e in range(epochs)], labels.numpy(), ["lion", "bus"])
    wanted = tune(CoOp(backbone), start, draw, Sgd(**rates, batch=32), 5)
    assert len(wanted) == epochs
    assert torch.equal(learned.tokens["text"], wanted[-1]["text"])
    assert not torch.equal(wanted[-1]["text"], wanted[-2]["text"])


def test_tuning_takes_four_views_and_sixty_steps():
    """docs/own-pictures.md measures these."""
    assert methods.views_for(["zero-shot", "coop"], None) == 4
    visual, textual = Start("vpt", 1, {}, {}, "none"), Start("coop", 1, {}, {}, "none")
    assert methods.views_for(["coop-start"], textual) == 4
    assert methods.views_for(["coop-start"], visual) == 0 == methods.views_for(["probe"], textual)
    assert methods.batch_of(textual) == 32 and methods.batch_of(Start("cocoop", 1, {}, {}, "")) == 1
    for pictures, steps in ((10, 60), (64, 60), (320, 60), (3200, 200)):
        epochs = methods.epochs_of(pictures, 32, STEPS)
        assert epochs * max(1, pictures // 32) == steps


def test_coop_begins_with_the_words_a_photo_of_a():
    backbone = load_backbone(BACKBONE)
    begun = methods.plain_start(backbone, 1)
    task = Task(backbone, ("lion", "bus"), "a photo of a {}.", None, 1)
    rows = torch.nn.functional.normalize(torch.randn(5, backbone.dim), dim=-1)
    said = logits_of(task, task.zero_shot, rows)
    from_start = logits_of(replace(task, start=begun), replace(task, start=begun).started, rows)
    assert not begun.phi and begun.input_scale == "none"
    assert context_of(begun.about, begun.theta) == 4
    assert from_start == pytest.approx(said, abs=1e-3)


def test_learned_tokens_are_counted_once_for_all_depths():
    assert context_of({"prompt": "coop", "depth": "3"}, {"text": torch.zeros(12, 2)}) == 4
    assert context_of(None, {}) == 0


def test_views_of_pixels_are_of_the_seed():
    backbone = load_backbone(BACKBONE)
    one = picture(CLASSES["lion"], 3)
    task = Task(backbone, ("lion", "bus"), "a photo of a {}.", None, 5)
    seen = Seen(torch.zeros(2, 1, backbone.dim), lambda i: one)
    draw = methods._draw(PROMPTS["vpt"](backbone), task, seen, torch.tensor([0, 1]), 2)
    wanted = AugmentedViews(backbone, lambda i: one, 2, 2, 5)
    assert torch.equal(draw.views[1][[1]], wanted[1][[1]])
    assert draw.labels.tolist() == [0, 1] and draw.names == ["lion", "bus"]


def test_a_start_is_tuned_from_itself_and_probed_by_itself():
    backbone = load_backbone(BACKBONE)
    theta = {"text": CoOp(backbone).initial(4, torch.Generator().manual_seed(3))["text"] + 0.05}
    start = Start("coop", 1, theta, {}, "none")
    task = Task(backbone, ("lion", "bus"), "a photo of a {}.", start, 1)
    rows = torch.nn.functional.normalize(torch.randn(8, 5, backbone.dim), dim=-1)
    seen, labels = Seen(rows, lambda i: None), torch.arange(8) % 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(methods, "STEPS", 2)
        learned = methods.METHODS["coop-start"](task, seen, labels)
    wanted = methods.tuned(task, start, seen, labels, 2)
    assert torch.equal(learned.tokens["text"], wanted.tokens["text"])
    probe = methods.METHODS["start-probe"](task, seen, labels)
    alone = heads._probed(task, task.started, seen, labels, names_count=True)
    other = methods.METHODS["probe"](task, seen, labels)
    assert torch.equal(probe.matrix, alone.matrix) and not torch.equal(probe.matrix, other.matrix)
    # what no token changes is seen as it was: the centre, not a view
    assert torch.equal(features_of(task, task.zero_shot, seen), rows[:, 0])
    opened = Seen(rows, lambda i: i)[np.array([5, 2])].opened
    assert [opened(0), opened(1)] == [5, 2]


# --- how long it takes ---


def ready(pictures, tried, start=None, folds=5):
    return Prepared(
        Task(None, ("a", "b"), "{}", start, 1),
        Collection("x", ["p"] * pictures, ["a"] * pictures, None),
        folds,
        tried,
        None,
        "",
    )


def test_the_time_told_before_is_that_of_all_parts():
    """100 pictures in five folds: five trainings on 80, one on 100."""
    costs = Costs(1.0, 3.0, 0.5, 2.0, 0.25, head=10.0)
    vpt = Start("vpt", 1, {}, {}, "none")
    assert _seconds(ready(100, []), ["zero-shot"], costs) == 100.0
    assert _seconds(ready(100, []), ["logistic"], costs) == 100 + 10 * (5 * 80 + 100) / 100
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gram.budget.STEPS", 60)
        # two steps an epoch of 80 pictures, three of 100: 30 and 20 epochs, with views
        assert _seconds(ready(100, []), ["coop"], costs) == 300 + 0.5 * 6 * 60
        # what is seen through the start's tokens: held out, and once more for the page
        of_start = 2.0 * 6 * 60 + 0.25 * 200
        assert _seconds(ready(100, [], vpt), ["coop-start"], costs) == 100 + of_start
        assert _seconds(ready(100, [], vpt, 0), ["coop-start"], costs) == 100 + 2 * 60 + 25


def test_what_takes_longer_than_allowed_is_left_out(monkeypatch):
    costs = Costs(1.0, 3.0, 0.5, 2.0, 0.25, head=10.0)
    monkeypatch.setattr("gram.budget._costs", lambda ready: costs)
    monkeypatch.setattr("gram.budget.STEPS", 60)
    asked = ready(100, ["zero-shot", "probe", "coop", "coop-start"], Start("coop", 1, {}, {}, ""))
    all_of_it = 300 + 50 + 180 + (2.0 * 360 + 0.25 * 200)
    found, seconds, left_out = within(asked, all_of_it / 60)
    assert found.methods == asked.methods and seconds == all_of_it and not left_out
    found, seconds, left_out = within(asked, all_of_it / 60 - 0.01)
    assert found.methods == ["zero-shot", "probe", "coop"] and seconds == 530.0
    assert left_out == {"coop-start": 770.0}
    found, seconds, left_out = within(asked, 3)
    assert found.methods == ["zero-shot", "probe"] and seconds == 150.0
    assert left_out == {"coop-start": 770.0, "coop": 380.0}
    with pytest.raises(InputError, match="about 2 min, and --minutes is 2;"):
        within(asked, 2)


def test_a_step_of_many_pictures_is_told_by_a_few(monkeypatch):
    """4 of 32 through the tower; what is the same for all pictures is counted once."""
    monkeypatch.setattr("gram.budget._step", lambda ready, start, pictures: 0.5 + pictures)
    vpt, joint = (Start(k, 1, t, {}, "") for k, t in (("vpt", {}), ("joint", {"text": 0})))
    assert _start_step(ready(100, []), vpt, 0.5) == 4.5 * 8
    assert _start_step(ready(100, []), joint, 0.5) == 0.5 + 4 * 8
    assert _start_step(ready(20, []), vpt, 0.5) == 4.5 * 5


# --- what is told ---


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """Pictures that are easy, and some of which lie in a wrong folder."""
    folder = save_pictures(tmp_path_factory.mktemp("own") / "pictures", 6)
    for i in range(2):
        picture(CLASSES["bus"], 50 + i).save(folder / "lion" / f"bus{i}.png")
    return folder


@pytest.fixture(scope="module")
def probed(own):
    return PromptClassifier(BACKBONE, method="probe", folds=3).fit(own)


@pytest.fixture(scope="module")
def kept(probed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "m"
    probed.save(folder)
    return folder


def judged(names, truth, told):
    """What a classifier knows of held-out pictures."""
    logits = np.log(np.array(told))
    return SimpleNamespace(
        classes_=np.array(names),
        names_=names,
        targets_=np.array(truth),
        judged=np.array(told),
        held_out_logits_=3 * logits,
        temperature_=3.0,
        threshold=lambda coverage: {0.9: 0.45}[coverage],
    )


def test_the_reports_figures_by_hand():
    told = [
        [0.8, 0.1, 0.1],
        [0.6, 0.3, 0.1],
        [0.2, 0.2, 0.6],
        [0.1, 0.8, 0.1],
        [0.7, 0.2, 0.1],
        [0.5, 0.3, 0.2],
        [0.9, 0.05, 0.05],
        [0.4, 0.35, 0.25],
    ]
    made = judged(["a", "b", "c"], [0, 0, 0, 1, 1, 2, 2, 0], told)
    guessed = np.array(told).argmax(axis=1)
    assert confusions(made, guessed) == [("c", "a", 2), ("a", "c", 1), ("b", "a", 1)]
    assert matrix(made, guessed).tolist() == [[3, 0, 1], [1, 1, 0], [2, 0, 0]]
    rows = per_class(made, guessed)
    assert [(r["name"], r["pictures"], r["accuracy"]) for r in rows] == [
        ("a", 4, 0.75),
        ("b", 2, 0.5),
        ("c", 2, 0.0),
    ]
    assert (rows[0]["low"], rows[0]["high"]) == share_interval(3, 4)
    found = figures(made)
    assert found["pictures"] == 8 and found["accuracy"] == 0.5
    assert (found["low"], found["high"]) == share_interval(4, 8)
    # of the sets at 0.9: a class is in one from 0.55 on
    assert (found["sure"], found["empty"], found["large"]) == (6 / 8, 2 / 8, 0)
    sharper = np.array(told) ** 3
    sharper /= sharper.sum(axis=1, keepdims=True)
    assert found["ece"] == pytest.approx(calibration_error(np.array(told), made.targets_))
    assert found["ece_before"] == pytest.approx(calibration_error(sharper, made.targets_))
    assert abs(found["ece"] - found["ece_before"]) > 0.05


def test_what_was_held_out_is_kept_at_the_temperature_that_was_found(probed, own):
    """And new pictures are told at the same."""
    logits, truth = probed.held_out_logits_, probed.targets_
    assert probed.temperature_ == pytest.approx(temperature_of(logits, truth))
    assert abs(np.log(probed.temperature_)) > 0.05  # else this test shows nothing
    assert probed.held_out_ == pytest.approx(chances(logits, probed.temperature_))
    assert probed.scores_ == pytest.approx(
        np.sort(1 - probed.held_out_[np.arange(len(truth)), truth])
    )
    features = probed.features(own)
    scale = float(probed.backbone_.logit_scale)
    wanted = scale * features.double().numpy() @ probed.matrix_.double().numpy().T
    assert probed.predict_proba(own) == pytest.approx(
        chances(wanted, probed.temperature_), abs=1e-6
    )
    assert probed.features_.float().numpy() == pytest.approx(features.numpy(), abs=2e-3)


def test_the_report_shows_what_was_named_wrong(probed, own):
    """The buses that lie among the lions, with what they were taken for and how surely."""
    guessed = probed.judged.argmax(axis=1)
    found = _wrong(probed, guessed)
    rows = [row for row, (a, b) in enumerate(zip(guessed, probed.targets_, strict=True)) if a != b]
    assert [f"lion/bus{i}.png" for i in range(2)] == [one["file"] for one in found]
    for one, row in zip(found, rows, strict=True):
        assert (one["label"], one["guessed"]) == ("lion", "bus")
        assert one["chance"] == probed.judged[row].max()


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """Pictures between the classes, many under a wrong one: sets of no class, of one and more."""
    folder, rng = tmp_path_factory.mktemp("elsewhere"), np.random.default_rng(3)
    colours = np.array(list(CLASSES.values()))
    for i in range(60):
        name = list(CLASSES)[rng.integers(3)]
        (folder / name).mkdir(exist_ok=True)
        mixed = rng.dirichlet([0.3] * 3) @ colours
        picture(mixed, i).save(folder / name / f"{i:02d}.png")
    return folder


def test_what_is_evaluated_is_what_is_predicted(elsewhere, tmp_path):
    easy = save_pictures(tmp_path / "easy", 6)
    made = PromptClassifier(BACKBONE, method="probe", folds=3).fit(easy)
    made.save(tmp_path / "m")
    found = evaluate_folder(tmp_path / "m", str(BACKBONE), elsewhere, lambda words: None)
    files = sorted(elsewhere.rglob("*.png"))
    truth = np.array([f.parent.name.replace("_", " ") for f in files])
    guessed, told = made.predict(files), made.predict_proba(files)
    right = guessed == truth
    assert 0 < right.sum() < len(files) == found["pictures"]
    assert found["accuracy"] == right.mean()
    assert (found["low"], found["high"]) == share_interval(int(right.sum()), len(files))
    number = np.searchsorted(made.classes_, truth)
    assert found["calibration_error"] == pytest.approx(calibration_error(told, number), abs=1e-6)
    held = made.predict_sets(files, 0.9)
    assert (
        {len(one) for one in held} >= {0, 1} and (guessed < truth).any() and (guessed > truth).any()
    )
    assert found["sets_at_0.9"] == {
        "hold_the_truth": pytest.approx(np.mean([t in s for t, s in zip(truth, held)])),
        "sure": pytest.approx(np.mean([len(s) == 1 for s in held])),
    }
    assert {k: (v["pictures"], v["accuracy"]) for k, v in found["classes"].items()} == {
        name: (int((truth == name).sum()), right[truth == name].mean()) for name in set(truth)
    }


@pytest.mark.parametrize("coverage", [0.3, 0.6, 0.9])
def test_rows_tell_the_likeliest_first_and_what_is_unsure(kept, probed, own, coverage):
    asked = Asked(None, 3, coverage, None)
    rows, unreadable = predict_pictures(kept, str(BACKBONE), [own], asked, lambda words: None)
    files = [row["path"] for row in rows]
    told, held = probed.predict_proba(files), probed.predict_sets(files, coverage)
    assert not unreadable and len(rows) == 20
    for row, chance, held_ in zip(rows, told, held, strict=True):
        order = sorted(zip(-chance, probed.classes_, strict=True))
        assert [one["label"] for one in row["top"]] == [name for _, name in order]
        assert row["label"] == order[0][1]
        assert row["probability"] == pytest.approx(-order[0][0], abs=1e-6)
        assert row["set"] == held_ and row["unsure"] == (len(held_) != 1)


def test_other_classes_are_given_no_sets_of_what_was_held_out(probed, own):
    wider = probed.with_classes(["zebra"])
    assert wider.held_out_ is None and probed.held_out_ is not None
    with pytest.raises(InputError, match="cannot say when it is unsure"):
        wider.predict_sets([own / "bus" / "0.png"])
    # what was learned stays, and the new row is the prompt's, trusted as far
    assert torch.equal(wider.matrix_[:3], probed.matrix_)
    task = replace(probed.task_, names=("zebra",))
    assert torch.allclose(wider.matrix_[3], probed.trust_ * task.zero_shot.matrix[0], atol=1e-6)


def test_the_page_tells_the_likeliest_and_the_nearest(probed, own):
    content = (own / "bus" / "0.png").read_bytes()
    chance = probed.predict_proba([content])[0]
    near = probed.features_.float().numpy() @ probed.features([content])[0].numpy()
    order = sorted(zip(-near, probed.collection_.files, strict=True))
    for coverage in (0.3, 0.9):
        told = Answers(probed, coverage).name(content)
        likeliest = sorted(zip(-chance, probed.classes_, strict=True))
        assert [one["label"] for one in told["top"]] == [name for _, name in likeliest]
        assert told["set"] == probed.predict_sets([content], coverage)[0]
        assert [one["file"] for one in told["near"]] == [file for _, file in order[:3]]
    assert told["near"][0]["file"] == "bus/0.png"  # itself


def test_a_collection_is_known_by_labels_and_contents_alone(tmp_path):
    def saved(name, files):
        for where, number in files.items():
            (tmp_path / name / where).parent.mkdir(parents=True, exist_ok=True)
            picture((90, 90, 90), number).save(tmp_path / name / where)
        return read_collection(tmp_path / name)

    one = saved("one", {"a/1.png": 1, "a/2.png": 2, "b/3.png": 3})
    assert saved("renamed", {"a/9.png": 1, "a/0.png": 2, "b/x.png": 3}).fingerprint == (
        one.fingerprint
    )
    for number, other in enumerate(
        ({"a/1.png": 1, "b/2.png": 2, "b/3.png": 3}, {"a/1.png": 1, "a/2.png": 4, "b/3.png": 3})
    ):
        assert saved(f"other{number}", other).fingerprint != one.fingerprint
    assert one.names == ["a", "b"] and one.targets.tolist() == [0, 0, 1]


def test_the_level_is_told_as_it_is():
    assert norm.cdf(1) - norm.cdf(-1) == pytest.approx(choice.LEVEL, abs=5e-3)
