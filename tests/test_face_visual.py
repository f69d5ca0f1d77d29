"""Starts of other kinds than CoOp's: visual tokens, both, coupled ones, deep ones, CoCoOp."""

import io
import json
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from test_face import BACKBONE, CLASSES, few_steps, gram, picture, save_pictures  # noqa: F401

from gram import InputError, PromptClassifier, budget, export, methods
from gram.budget import Costs
from gram.collection import Collection
from gram.inputs import Prepared
from gram.prompted import Task
from gram.published import read_start
from gram.serve import Answers
from pipeline.clip.backbone import image_features, load_backbone
from pipeline.gram.params import Regulator
from pipeline.gram.regulator import initial_phi
from pipeline.params import read_yaml
from pipeline.prompts import METHODS
from pipeline.prompts.base import placed
from pipeline.prompts.starts import Start, load_start, method_of, save_start

KINDS = {"vpt": 2, "joint": 1, "coupled": 2, "cocoop": 1, "coop": 2}


REGULATOR = Regulator(input_scale="rms", bias=1.0, weight_std=0.0, bias_per_token=False)


@pytest.fixture(scope="module")
def starts(tmp_path_factory):
    """A start of every kind, as meta-training leaves them."""
    folder, backbone = tmp_path_factory.mktemp("starts"), load_backbone(BACKBONE)
    for prompt, depth in KINDS.items():
        made = METHODS[prompt](backbone, depth=depth)
        theta = made.initial(4, torch.Generator().manual_seed(3))
        phi = initial_phi(theta, REGULATOR, torch.Generator().manual_seed(4))
        save_start(Start(prompt, depth, theta, phi, "rms"), folder / prompt)
    return folder


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    return save_pictures(tmp_path_factory.mktemp("own") / "pictures")


@pytest.fixture(scope="module")
def fitted(starts, own):
    return {
        prompt: PromptClassifier(BACKBONE, starts / prompt, "coop-start", folds=2).fit(own)
        for prompt in KINDS
    }


@pytest.mark.parametrize("prompt", KINDS)
def test_it_answers_as_the_tuned_prompt_does(prompt, fitted, starts, own):
    """Against the prompt method itself, asked with pixels."""
    made, start = fitted[prompt], load_start(starts / prompt)
    for name, rows in made.tokens_.items():
        assert rows.shape == start.theta[name].shape and not torch.equal(rows, start.theta[name])
    backbone = made.backbone_
    method = method_of(start.about, backbone, made.template)
    files = sorted(own.rglob("*.png"))
    views = torch.stack([backbone.test_view(Image.open(f).convert("RGB")) for f in files])
    with torch.inference_mode():
        seen = views if method.sees_pixels else backbone.model.encode_image(views, normalize=True)
        there = placed(made.tokens_, backbone.device)
        classes = method.prepare([made.classes_.tolist()])
        wanted = method.logits(there, classes, method.look(seen[None]))[0] / made.temperature_
    assert np.allclose(made.predict_proba(own), wanted.softmax(-1).numpy(), atol=1e-5)
    assert made.held_out_.shape == (12, 3)


@pytest.mark.parametrize("prompt", KINDS)
def test_it_is_kept_with_its_tokens(prompt, fitted, own, tmp_path):
    fitted[prompt].save(tmp_path / "m")
    again = PromptClassifier.load(tmp_path / "m")
    assert np.array_equal(again.predict_proba(own), fitted[prompt].predict_proba(own))
    wider = again.with_classes(["boat"])
    assert np.array_equal(
        wider.predict_proba(own), fitted[prompt].with_classes(["boat"]).predict_proba(own)
    )
    assert wider.predict_proba(own).shape == (12, 4)
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert config["prompt"] == {"prompt": prompt, "depth": str(KINDS[prompt])}
    assert (
        methods.KINDS[prompt] in config["title"]
        and config["title"] in (tmp_path / "m" / "report.html").read_text()
    )


@pytest.mark.whole  # tracing a tower takes seconds
@pytest.mark.parametrize("prompt", ["vpt", "coupled", "cocoop"])
def test_the_graph_answers_as_the_tuned_prompt_does(prompt, fitted, tmp_path):
    ort, path, made = pytest.importorskip("onnxruntime"), tmp_path / "m.onnx", fitted[prompt]
    if prompt == "cocoop":
        with pytest.raises(InputError, match="other class features for every picture"):
            export.export(made, path)
        assert not list(tmp_path.iterdir())
        return
    assert export.export(made, path) <= export.TOLERANCE
    pictures = [picture((40 * i, 90, 90), i) for i in range(5)]
    views = torch.stack([made.backbone_.test_view(p) for p in pictures])
    found = ort.InferenceSession(path).run(None, {"pixels": views.numpy()})[0]
    assert np.abs(found - made.predict_proba(pictures)).max() < 1e-4


def test_auto_compares_it_on_held_out_pictures(starts, own, tmp_path):
    """One command, its table of methods, and the page's answer through the same tower."""
    out = tmp_path / "m"
    given = ("--backbone", BACKBONE, "--start", starts / "vpt", "--minutes", 600)
    done = gram("adapt", own, "--out", out, *given)
    assert done.exit_code == 0, done.output
    rows = json.loads((out / "config.json").read_text())["comparison"]
    assert [row["title"] for row in rows][-1] == "VPT from the meta-learned start, regulated"
    assert [row["method"] for row in rows] == [m for m in methods.METHODS if m != "start-probe"]


def test_the_page_looks_through_the_tokens(fitted):
    content = io.BytesIO()
    picture(CLASSES["lion"], 77).save(content, "png")
    told = Answers(fitted["vpt"], 0.5).name(content.getvalue())
    wanted = fitted["vpt"].predict_proba([content.getvalue()])[0]
    assert told["top"][0]["probability"] == pytest.approx(wanted.max())
    seen = fitted["vpt"].features([content.getvalue()])[0]
    near = (fitted["vpt"].features_.float() @ seen).argmax()
    assert told["near"][0]["file"] == fitted["vpt"].collection_.files[near]
    plain = image_features(
        fitted["vpt"].backbone_, [fitted["vpt"].backbone_.test_view(picture(CLASSES["lion"], 77))]
    )
    assert float(plain[0] @ seen) < 0.999


def test_a_stall_while_measuring_leaves_no_method_out():
    delays = iter([0.3, 0.0])
    assert budget._seconds_of(lambda: time.sleep(next(delays))) < 0.1


@pytest.mark.parametrize("prompt", ["vpt", "joint", "coupled"])
def test_a_tower_that_takes_no_tokens_refuses_them(prompt, starts):
    backbone = replace(load_backbone(BACKBONE), vision=None)
    with pytest.raises(InputError, match=f"{prompt}: .*use a textual method"):
        read_start(starts / prompt, backbone, "0")


def spoilt(start, name, rows):
    return replace(start, theta=start.theta | {name: rows})


@pytest.mark.parametrize(
    ("prompt", "change", "words"),
    [
        ("vpt", lambda s: spoilt(s, "image", torch.zeros(4, 64)), "'image' is 64 wide"),
        ("vpt", lambda s: spoilt(s, "image", torch.zeros(3, 192)), "'image' has 3 rows"),
        ("joint", lambda s: replace(s, theta={"text": s.theta["text"]}), "holds text, and"),
        ("coupled", lambda s: spoilt(s, "coupling", torch.zeros(5, 193)), "'coupling' has 5 rows"),
        ("coop", lambda s: replace(s, depth=9), "lower it"),
        ("coop", lambda s: replace(s, prompt="magic"), "known are coop, cocoop, vpt"),
    ],
)
def test_a_start_that_does_not_fit_is_named(prompt, change, words, starts, tmp_path):
    save_start(change(load_start(starts / prompt)), tmp_path / "odd")
    with pytest.raises(InputError, match=words) as caught:
        read_start(tmp_path / "odd", load_backbone(BACKBONE), "0")
    assert str(tmp_path / "odd") in str(caught.value)


def prepared(start, pictures, folds=5):
    collection = Collection("x", ["p"] * pictures, ["a"] * pictures, None)
    task = Task(None, ("a", "b"), "{}", start, 1)
    return Prepared(task, collection, folds, list(methods.METHODS), None, "")


def test_the_estimate_counts_every_step(starts):
    """60 steps a training, of five folds and of all pictures; an epoch is never cut."""
    start, costs = load_start(starts / "vpt"), Costs(1.0, 5.0, 0.0, 10.0, 2.0)
    bare = Costs(1.0, 5.0, 0.0, 0.0, 0.0)
    every = list(methods.METHODS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(budget, "STEPS", 60)
        for pictures, steps in ((20, 6 * 60), (160, 5 * 60 + 60), (6400, 5 * 2 * 160 + 2 * 200)):
            ready = prepared(start, pictures)
            learning = budget._seconds(ready, every, costs) - budget._seconds(ready, every, bare)
            assert learning == 10.0 * steps + 2.0 * pictures * 4
    without = [name for name in every if name != "coop"]
    assert budget._seconds(prepared(start, 100), without, bare) == 100.0  # no textual views


@pytest.mark.parametrize("prompt", ["vpt", "joint", "cocoop", "coop"])
def test_minutes_leave_out_what_takes_longest_and_say_how_long(
    prompt, starts, own, tmp_path, monkeypatch
):
    measured, costs = budget._costs, budget.Costs(1e-3, 1e-3, 1.0, 1.0, 0.0)
    # measured, but then as on a machine where a step of tuning takes a second
    monkeypatch.setattr(budget, "_costs", lambda ready: measured(ready) and costs)
    given = ("--backbone", BACKBONE, "--start", starts / prompt, "--minutes", 0.01)
    done = gram("adapt", own, "--out", tmp_path / "m", *given)
    assert done.exit_code == 0, done.output
    title = f"{methods.KINDS[prompt]} from the meta-learned start, regulated"
    assert f"note: {title} is left out, to stay within 0.01 minutes" in done.stderr
    assert "it would take about" in done.stderr


@pytest.mark.parametrize("prompt", KINDS)
def test_visual_tokens_are_tuned_at_the_rate_that_they_bear(prompt, starts, own, monkeypatch):
    """The demo's own, by kind of prompt (`tuning.lr_factor_of`)."""
    used = []
    monkeypatch.setattr(
        methods,
        "tune",
        lambda method, start, draw, settings, seed: used.append(settings) or [start.theta],
    )
    PromptClassifier(BACKBONE, starts / prompt, "coop-start", folds=2).fit(own)
    tuning = read_yaml(ROOT / "params.yaml")["tuning"]
    assert {s.lr for s in used} == {tuning["lr"] * tuning["lr_factor_of"].get(prompt, 1.0)}
