"""A backbone whose config says another activation than its weights were trained with: labelled
pictures tell, and what says so changes nothing.
"""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file
from test_towers import write_backbone
from tiny import CLASSES, jpeg, make_backbone, make_params, make_pictures, stage
from torch.nn import GELU
from torch.nn.functional import cross_entropy
from typer.testing import CliRunner

from gram.cli import app
from pipeline.clip.activation import _mlps, compare_activations, measurably
from pipeline.clip.backbone import image_features, load_backbone, open_picture

EACH = 20


def prompt(name):
    return f"a photo of a {name}."


PICTURES = [
    (jpeg(number, label, 0), CLASSES[label])
    for label in range(len(CLASSES))
    for number in range(label * EACH, (label + 1) * EACH)
]
LABELS = [name for _, name in PICTURES]


def configured(folder, quick):
    path = folder / "open_clip_config.json"
    config = json.loads(path.read_text())
    config["model_cfg"]["quick_gelu"] = quick
    path.write_text(json.dumps(config))
    return folder


def trained(folder, quick):
    """Weights that name the pictures, and depend on the activation: with another one, what a unit
    of the last block adds to every picture is not what its bias takes away again.
    """
    make_backbone(folder)
    backbone = load_backbone(configured(folder, quick))
    views = torch.stack([backbone.test_view(open_picture(content)) for content, _ in PICTURES])
    ids = backbone.tokenize([prompt(name) for name in CLASSES])
    truth = torch.tensor([CLASSES.index(label) for label in LABELS])
    model = backbone.model
    optimiser = torch.optim.Adam([p.requires_grad_() for p in model.parameters()], lr=2e-3)
    for _ in range(100):
        text = model.encode_text(ids, normalize=True)
        logits = 20 * model.encode_image(views, normalize=True) @ text.T
        optimiser.zero_grad()
        cross_entropy(logits, truth).backward()
        optimiser.step()
    assert (logits.argmax(dim=1) == truth).float().mean() > 0.6
    mlp, added = model.visual.transformer.resblocks[-1].mlp, 1e4 * torch.randn(32)
    with torch.no_grad():
        mlp.c_fc.weight[0], mlp.c_fc.bias[0], mlp.c_proj.weight[:, 0] = 0, -2, added
        mlp.c_proj.bias -= added * mlp.gelu(torch.tensor(-2.0))
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("quick") / "backbone", True)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    top = tmp_path_factory.mktemp("pictures")
    for number, (content, label) in enumerate(PICTURES):
        (top / label).mkdir(exist_ok=True)
        (top / label / f"{number}.jpg").write_bytes(content)
    return top


def compared(backbone, pictures=PICTURES):
    opened = lambda row: open_picture(pictures[row][0])
    return compare_activations(backbone, opened, [label for _, label in pictures], prompt)


def test_the_better_activation_is_named_and_nothing_is_switched(folder):
    plain = load_backbone(configured(folder, False))
    view = [plain.test_view(open_picture(PICTURES[0][0]))]
    before = image_features(plain, view)
    words = compared(plain)
    assert "config says GELU, but its weights seem to have been trained with QuickGELU" in words
    assert "of 80 pictures as it is, and on " in words and '"quick_gelu": true' in words
    assert torch.equal(image_features(plain, view), before)
    assert all(type(mlp.gelu) is GELU for mlp in _mlps(plain.model))
    assert compared(load_backbone(configured(folder, True))) is None
    assert compared(plain, PICTURES[::2]) is None  # 40 are too few


def test_the_opposite_is_named_too(tmp_path):
    folder = trained(tmp_path / "backbone", False)
    assert compared(load_backbone(folder)) is None
    words = compared(load_backbone(configured(folder, True)))
    assert "config says QuickGELU, but its weights seem to have been trained with GELU" in words
    assert '"quick_gelu": false' in words


def test_at_most_200_pictures_are_looked_at_twice(folder):
    backbone, seen = load_backbone(configured(folder, True)), []
    many = PICTURES * 5
    opened = lambda row: seen.append(row) or open_picture(many[row][0])
    compare_activations(backbone, opened, LABELS * 5, prompt)
    assert len(seen) == len(set(seen)) == 200 and (seen[0], seen[-1]) == (0, 399)


@pytest.mark.parametrize(
    ("worse", "better", "named"),
    [(0, 0, False), (0, 4, False), (0, 5, True), (5, 5, False), (4, 11, False), (4, 13, True)],
)
def test_noise_is_not_taken_for_an_activation(worse, better, named):
    assert measurably(worse, better) is named


@pytest.mark.parametrize(
    ("kind", "count"),
    [
        ("clip", 6),
        ("unusual blocks", 6),
        ("timm avg", 3),
        ("resnet", 3),
        ("bert", 3),
        ("siglip", 3),
    ],
)
def test_only_what_the_config_s_key_changes_is_compared(tmp_path, kind, count):
    assert len(_mlps(load_backbone(write_backbone(tmp_path, kind)).model)) == count


def run(*arguments):
    found = CliRunner().invoke(app, list(map(str, arguments)))
    assert found.exit_code == 0, found.output
    return found


def test_check_and_adapt_tell_it(folder, pictures, tmp_path):
    configured(folder, False)
    assert "QuickGELU" not in run("check", pictures).output
    for arguments in (
        ("check", pictures, "--backbone", folder),
        ("adapt", pictures, "--backbone", folder, "--out", tmp_path / "m", "--method", "probe"),
    ):
        words = run(*arguments).stderr
        assert f"note: backbone {folder}: its config says GELU" in words
    configured(folder, True)
    assert "QuickGELU" not in run("check", pictures, "--backbone", folder).output


def test_the_stage_benchmark_warns_and_writes_the_same(folder, tmp_path, capsys, monkeypatch):
    make_pictures(tmp_path)
    make_params(tmp_path)
    shutil.copytree(configured(folder, False), tmp_path / "backbone")
    for label, name in enumerate(CLASSES):
        for number in range(EACH):
            place = tmp_path / "pictures" / "test" / "flat" / name / f"more{number}.jpg"
            place.write_bytes(jpeg(label * EACH + number, label, 0))
    made = {}
    for level in (0.05, 0.0):
        monkeypatch.setattr("pipeline.clip.activation.LEVEL", level)
        out = tmp_path / f"out{level}"
        stage("benchmark", "--name", "whole", "--out", out, params=tmp_path / "params.yaml")
        made[level] = {f.name: f.read_bytes() for f in out.iterdir() if f.is_file()}
        warned = "warning: the backbone: its config says GELU" in capsys.readouterr().err
        assert warned is (level > 0)
    assert made[0.05] == made[0.0] and len(made[0.0]) >= 5
