"""The demo's backbone through our forward equals open_clip's own; files that do not fit are
named.
"""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file, save_file

from pipeline.clip.backbone import image_features, load_backbone, text_features
from pipeline.errors import InputError
from pipeline.prompts.coop import CoOp
from pipeline.prompts.template import Template

NAMES = ["lion", "polar bear", "cable car", "chili pepper", "desktop computer"]
BACKBONE = ROOT / "demo" / "backbone"


@pytest.fixture(scope="module")
def backbone():
    return load_backbone(BACKBONE)


def test_cut_sequences_are_exact(backbone):
    texts = [f"a photo of a {n}." for n in NAMES]
    pieces = backbone.text.split(texts)
    assert pieces.rest.shape[1] == int(pieces.end.max()) + 1 < backbone.text.room - 1
    assert torch.allclose(
        backbone.text.features(pieces),
        backbone.model.encode_text(backbone.tokenize(texts), normalize=True),
        atol=1e-6,
    )


def test_coop_at_its_start_is_the_template(backbone):
    """With "a photo of a" as context, learned prompts and open_clip's encode_text agree."""
    method = CoOp(backbone)
    start = method.initial(4, torch.Generator())
    learned = method.text_features({"text": start["text"].unsqueeze(0)}, method.prepare([NAMES]))[0]
    expected = backbone.model.encode_text(
        backbone.tokenize([f"a photo of a {n}." for n in NAMES]), normalize=True
    )
    assert torch.allclose(learned, expected, atol=1e-6)
    fixed = Template(backbone, ["a photo of a {}."])
    assert torch.allclose(fixed.text_features({}, fixed.prepare([NAMES]))[0], expected, atol=1e-6)


def test_other_token_counts_start_at_random_from_the_seed(backbone):
    one, same, other = (
        CoOp(backbone).initial(8, torch.Generator().manual_seed(s))["text"] for s in (1, 1, 2)
    )
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert one.shape == (8, 192) and 0.015 < one.std() < 0.025


def test_too_many_tokens_for_the_tower(backbone):
    method = CoOp(backbone)
    classes = method.prepare([["a name that is much too long for it"]])
    with pytest.raises(InputError, match="lower 'context_tokens'"):
        method.text_features({"text": torch.zeros(1, 20, 192)}, classes)


def test_nothing_requires_gradients_and_features_have_unit_length(backbone):
    assert not any(p.requires_grad for p in backbone.model.parameters())
    assert torch.allclose(text_features(backbone, NAMES).norm(dim=-1), torch.ones(5), atol=1e-5)


@pytest.fixture
def copy(tmp_path):
    return shutil.copytree(BACKBONE, tmp_path / "backbone")


@pytest.mark.parametrize(
    ("side", "threads", "most", "expected"),
    [(224, 1, 256, 4), (224, 2, 256, 8), (448, 1, 256, 1), (48, 1, 256, 87), (48, 1, 64, 64)],
)
def test_pictures_at_once_suit_cache_and_size(backbone, monkeypatch, side, threads, most, expected):
    """A convolutional tower at 224 pixels is twice as slow with 256 pictures at once as with 4."""
    monkeypatch.delenv("PICTURES_AT_ONCE", raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    sizes = []

    class Model:
        def encode_image(self, pixels, normalize):
            sizes.append(len(pixels))
            return pixels.mean((2, 3))

    views = [torch.full((3, side, side), float(n)) for n in range(expected + 1)]
    found = image_features(replace(backbone, model=Model()), views, most)
    assert sizes == [expected, 1] and found[:, 0].tolist() == list(range(expected + 1))
    monkeypatch.setenv("PICTURES_AT_ONCE", "3")
    image_features(replace(backbone, model=Model()), views[:3], most)
    assert sizes[-1] == len(views[:3])


def test_weights_of_another_config(copy):
    config = json.loads((copy / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["width"] = 384
    (copy / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(
        InputError,
        match=r"open_clip_model.safetensors: tensor '.*' is \(.*192.*\), "
        r"but open_clip_config.json beside it calls for \(.*384.*\)",
    ):
        load_backbone(copy)


def test_weights_that_lack_or_add_a_tensor(copy):
    path = copy / "open_clip_model.safetensors"
    weights = load_file(path)
    whole = dict(weights)
    removed = weights.pop("ln_final.weight")
    save_file(weights, path)
    with pytest.raises(InputError, match="has no tensor 'ln_final.weight'"):
        load_backbone(copy)
    save_file(whole | {"stray": removed.clone()}, path)
    with pytest.raises(InputError, match="tensor 'stray' has no place"):
        load_backbone(copy)


def test_truncated_or_missing_files(copy):
    path = copy / "open_clip_model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match="not a complete safetensors file"):
        load_backbone(copy)
    path.unlink()
    with pytest.raises(InputError, match="missing; put the backbone's weights there"):
        load_backbone(copy)
    (copy / "open_clip_config.json").unlink()
    with pytest.raises(InputError, match="open_clip_config.json: missing"):
        load_backbone(copy)


def test_the_size_and_origin_of_the_committed_backbone():
    record = json.loads((BACKBONE / "training.json").read_text())
    assert (BACKBONE / "open_clip_model.safetensors").stat().st_size <= 16e6
    assert record["seed"] != 1  # the demo's own pictures come from seed 1
