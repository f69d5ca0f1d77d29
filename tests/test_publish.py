"""The stage `publish`: a learned start as others take it."""

import io
import json
import shutil

import numpy as np
import pytest
import torch
from conftest import ROOT, run
from safetensors.torch import load_file
from test_face import (  # noqa: F401
    BACKBONE,
    CLASSES,
    few_steps,
    gram,
    other_backbone,
    own,
    picture,
    start,
)

from gram import InputError
from pipeline.clip.backbone import load_backbone, open_picture
from pipeline.clip.digest import backbone_digest
from pipeline.gram.serving import Classifier
from pipeline.prompts import METHODS
from pipeline.prompts.base import placed
from pipeline.prompts.starts import Start, method_of, save_start

FIGURES = {"base": 70.8, "new": 62.2, "H": 66.2}


@pytest.fixture(scope="module")
def published(start, tmp_path_factory):  # noqa: F811
    """What the script writes, and what it said."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "figures.json").write_text(json.dumps(FIGURES))
    (folder / "batch.json").write_text('{"batch": 32, "lr_factor": 0.5}')
    done = run(
        *("python", "stages/publish.py", "--name", "coop_gram", "--start", start),
        *("--figures", folder / "figures.json", "--batch", folder / "batch.json"),
        *("--out", folder / "published"),
        cwd=ROOT,
    )
    assert "for the backbone" in done.stdout
    return folder / "published"


def test_it_holds_all_that_belongs_to_a_start(published, start):  # noqa: F811
    names = sorted(p.name for p in published.iterdir())
    assert names == ["README.md", "config.json", "prompt.safetensors", "regulator.safetensors"]
    for name in ("prompt.safetensors", "regulator.safetensors"):
        wanted, found = load_file(start / name), load_file(published / name)
        assert wanted.keys() == found.keys() and all((wanted[k] == found[k]).all() for k in wanted)
    config = json.loads((published / "config.json").read_text())
    assert config["backbone"]["sha256"] == backbone_digest(BACKBONE)
    assert config["tuning"]["lr"] == 0.001 and config["tuning"]["batch"] == 32
    assert config["tuning"]["epochs"] == 10
    assert config["provenance"]["source"] == "data/world/demo"
    assert config["provenance"]["method"]["episodes"] == "shifted"
    card = (published / "README.md").read_text()
    assert "| 66.2 |" in card and config["backbone"]["sha256"][:16] in card


def test_adapt_takes_it_for_its_own_backbone_alone(published, own, tmp_path):  # noqa: F811
    common = ("adapt", own, "--start", published, "--method", "start", "--folds", 2)
    assert gram(*common, "--backbone", BACKBONE, "--out", tmp_path / "m").exit_code == 0
    with pytest.raises(InputError, match="was made for the backbone 'demo/backbone'"):
        gram(*common, "--backbone", other_backbone(tmp_path / "other"), "--out", tmp_path / "n")
    assert not (tmp_path / "n").exists()


def test_what_is_not_there_is_named(start, tmp_path):  # noqa: F811
    from pipeline.gram.publish import publish

    settings = {"title": "x", "tuning": {}, "provenance": {}}
    with pytest.raises(InputError, match="figures.json: missing"):
        publish(start, tmp_path / "p", BACKBONE, figures=tmp_path / "figures.json", **settings)
    shutil.copytree(start, tmp_path / "s")
    (tmp_path / "s" / "regulator.safetensors").unlink()
    with pytest.raises(InputError, match="regulator.safetensors: missing"):
        publish(tmp_path / "s", tmp_path / "p", BACKBONE, figures=tmp_path, **settings)
    assert not (tmp_path / "p").exists()


def test_a_start_as_a_model_names_pictures_as_eq_1_says(start):  # noqa: F811
    """Softmax over names, picture by picture, in the wording that is given; "a photo of a" where
    the method learns the words.
    """
    pictures, names = [], ["lion", "bus", "sea star"]
    for seed, colour in enumerate(CLASSES.values()):
        packed = io.BytesIO()
        picture(colour, seed).save(packed, "png")
        pictures.append(packed.getvalue())
    model = Classifier(start, BACKBONE)
    backbone = model.backbone
    with torch.inference_mode():
        views = torch.stack([backbone.test_view(open_picture(p)) for p in pictures])
        images = backbone.model.encode_image(views, normalize=True)
        coop = method_of(model.start.about, backbone, "{}")
        texts = coop.head(placed(model.start.theta, backbone.device), coop.prepare([names]))[0]
    logits = float(backbone.logit_scale) * (images @ texts.T).numpy()
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    found = model.predict(pictures, names)
    assert [row["label"] for row in found] == [names[k] for k in chances.argmax(axis=1)]
    assert [row["probability"] for row in found] == pytest.approx(chances.max(axis=1), abs=1e-4)


def test_a_start_that_learns_no_words_takes_those_that_are_given(tmp_path):
    theta = METHODS["vpt"](load_backbone(BACKBONE)).initial(2, torch.Generator().manual_seed(3))
    save_start(Start("vpt", 1, theta, {}, "none"), tmp_path / "vpt")
    model, packed = Classifier(tmp_path / "vpt", BACKBONE), io.BytesIO()
    picture(CLASSES["lion"], 1).save(packed, "png")
    told = []
    for template in ("a photo of a {}.", "a dark sketch of two {} at night"):
        prompt = method_of(model.start.about, model.backbone, template)
        with torch.inference_mode():
            view = model.backbone.test_view(open_picture(packed.getvalue()))[None]
            tokens = placed(model.start.theta, model.backbone.device)
            logits = prompt.logits(
                tokens, prompt.prepare([["lion", "bus"]]), prompt.look(view[None])
            )
        (row,) = model.predict([packed.getvalue()], ["lion", "bus"], template)
        assert row["probability"] == pytest.approx(float(logits.softmax(-1).max()), abs=1e-5)
        told.append(row["probability"])
    assert abs(told[0] - told[1]) > 1e-3
