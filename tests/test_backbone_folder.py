"""A backbone's folder: what its config says is done as open_clip does it, or refused with file and
key; weights and vocabulary are whole, and mean what they say.
"""

import gzip
import json
import math
import shutil

import open_clip
import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file, save_file
from test_towers import write_backbone
from tiny import CONFIG, make_backbone

from pipeline.clip.backbone import load_backbone, side_read
from pipeline.errors import InputError

ODD = [
    "",
    "a photo of a polar_bear.",
    "It's  a   CABLE-car, isn't it?!",
    "Caf\u00e9 &amp;amp; Zoë’s ﬁsh",
    "日本の犬 🐶 \u00a0 123",
    "<end_of_text> and <mask> a",
    "a " * 60,
    "\t\n",
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    top = tmp_path_factory.mktemp("made") / "backbone"
    make_backbone(top)
    return top


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made, tmp_path / "backbone")


def changed(folder, place, value):
    """The config with a value at a dotted key; `del` takes the key out."""
    path = folder / "open_clip_config.json"
    config = json.loads(path.read_text())
    here, (*inside, key) = config, place.split(".")
    for part in inside:
        here = here[part]
    if value == "del":
        del here[key]
    else:
        here[key] = value
    path.write_text(json.dumps(config))
    return path


def tokens_of(folder, texts):
    """Ours, and open_clip's own."""
    return load_backbone(folder).tokenize(texts), open_clip.get_tokenizer(
        f"local-dir:{folder}", bpe_path=str(folder / "bpe.txt.gz")
    )(texts)


@pytest.mark.parametrize(
    "options",
    [
        None,
        {},
        {"clean": "lower"},
        {"clean": "whitespace"},
        {"clean": "canonicalize"},
        {"clean": "canonicalize", "reduction_mask": ""},
    ],
)
def test_the_tokenizer_takes_the_config_s_options(folder, options):
    if options is not None:
        changed(folder, "model_cfg.text_cfg.tokenizer_kwargs", options)
    ours, theirs = tokens_of(folder, ODD)
    assert torch.equal(ours, theirs)


def test_more_special_tokens_are_the_tokenizer_s(folder):
    changed(folder, "model_cfg.text_cfg.vocab_size", 1729)
    changed(
        folder,
        "model_cfg.text_cfg.tokenizer_kwargs",
        {"additional_special_tokens": ["<mask>"]},
    )
    path = folder / "open_clip_model.safetensors"
    weights = load_file(path)
    table = weights["token_embedding.weight"]
    save_file(weights | {"token_embedding.weight": torch.cat([table, table[:1]])}, path)
    ours, theirs = tokens_of(folder, ODD)
    assert torch.equal(ours, theirs)
    assert (ours == 1728).any()


@pytest.mark.parametrize("options", [{}, {"clean": "canonicalize"}, {"strip_sep_token": True}])
def test_a_hugging_face_tokenizer_takes_the_config_s_options(tmp_path, options):
    folder = write_backbone(tmp_path, "clipa")
    for file in (folder / "words").iterdir():
        shutil.copy(file, folder)
    changed(folder, "model_cfg.text_cfg.tokenizer_kwargs", options)
    texts = ["a  photo of a lion.", "Polar_Bear", "polar-bear car"]
    theirs = open_clip.get_tokenizer(f"local-dir:{folder}")(texts)
    assert torch.equal(load_backbone(folder).tokenize(texts), theirs)


TOKENIZER = "model_cfg.text_cfg.tokenizer_kwargs"
DAMAGED = {
    # of the tokenizer
    f"{TOKENIZER} = {{'reduction_mask': 'simple'}}": 'reduction_mask\' is "simple".*take it out',
    f"{TOKENIZER} = {{'reduction_mask': 'syntax'}}": 'reduction_mask\' is "syntax".*take it out',
    f"{TOKENIZER} = {{'reduction_mask': 'random'}}": 'reduction_mask\' is "random"',
    f"{TOKENIZER} = {{'reduction_mask': 'shuffle'}}": 'reduction_mask\' is "shuffle"',
    f"{TOKENIZER} = {{'clean': 'upper'}}": 'clean\' is "upper"; known are lower, whitespace',
    f"{TOKENIZER} = {{'clean': None}}": "clean' is null; known are lower",
    f"{TOKENIZER} = {{'cleen': 'lower'}}": "cleen' of open_clip's own.*did you mean 'clean'",
    f"{TOKENIZER} = {{'strip_sep_token': True}}": "unknown key '.*strip_sep_token'",
    f"{TOKENIZER} = {{'bpe_path': 'mine.gz'}}": 'bpe_path\' is "mine.gz"; .*put it there',
    f"{TOKENIZER} = {{'context_length': 8}}": "context_length' is 8; it is read from 'text_cfg",
    f"{TOKENIZER} = {{'trust_remote_code': True}}": "no code of a backbone is run",
    f"{TOKENIZER} = {{'additional_special_tokens': 'x'}}": "take a list of words",
    f"{TOKENIZER} = 'lower'": 'tokenizer_kwargs\' is "lower"',
    "model_cfg.text_cfg.tokenizer_mode = 'clips'": "'tokenizer_mode' is 'clips'",
    # of the towers
    "model_cfg.text_cfg.pool_type = 'none'": 'text_cfg.pool_type\' is "none"; known are "first"',
    "model_cfg.text_cfg.pool_type = 'eos'": "pool_type' is 'eos', which takes 'eos_id' 2",
    "model_cfg.text_cfg.proj_type = 'mlp'": 'text_cfg.proj_type\' is "mlp"; known are',
    "model_cfg.text_cfg.block_type = 'customs'": 'block_type\' is "customs"',
    "model_cfg.text_cfg.embed_cls = True": "embed_cls' is true; that is of CoCa",
    "model_cfg.text_cfg.width = '32'": 'text_cfg.width\' is "32"; take a number above 0',
    "model_cfg.text_cfg.width = 32.5": "text_cfg.width' is 32.5",
    "model_cfg.text_cfg.heads = 5": "must be divisible",
    "model_cfg.text_cfg.heads = 0": "heads' is 0; take a number above 0",
    "model_cfg.text_cfg.no_causal_mask = 'no'": 'no_causal_mask\' is "no"',
    "model_cfg.text_cfg.hf_tokenizer_pretrained = True": "unknown key 'model_cfg.text_cfg.hf_tok",
    "model_cfg.text_cfg.contxt_length = 24": "did you mean 'context_length'",
    "model_cfg.text_cfg.quick_gelu = True": "'model_cfg.text_cfg.quick_gelu'; it belongs into 'mod",
    "model_cfg.text_cfg.image_mean = 1": "unknown key 'model_cfg.text_cfg.image_mean'",
    "model_cfg.text_cfg = None": "it has no 'model_cfg.text_cfg'",
    "model_cfg.text_cfg = 'del'": "it has no 'model_cfg.text_cfg'",
    "model_cfg.vision_cfg = []": "it has no 'model_cfg.vision_cfg'",
    "model_cfg.vision_cfg.pool_type = 'none'": 'vision_cfg.pool_type\' is "none"; known are "tok"',
    "model_cfg.vision_cfg.output_tokens = True": "output_tokens' is true; that is of CoCa",
    "model_cfg.vision_cfg.pos_embed_type = 'sincos'": 'pos_embed_type\' is "sincos"',
    "model_cfg.vision_cfg.attentional_pool = 'both'": 'attentional_pool\' is "both"',
    "model_cfg.vision_cfg.head_width = 0": "head_width' is 0; take a number above 0",
    "model_cfg.vision_cfg.image_size = -16": "image_size' is -16; take a number above 0",
    "model_cfg.vision_cfg.act_kwargs = {'slope': 1}": "slope",
    "model_cfg.vision_cfg.mean = [0, 0, 0]": "vision_cfg.mean'; it belongs into 'preprocess_cfg'",
    # beside them
    "model_cfg.embed_dim = 'del'": "'model_cfg.embed_dim' is null; take a number above 0",
    "model_cfg.quick_gelu = 'yes'": 'quick_gelu\' is "yes"; take true or false',
    "model_cfg.cast_dtype = 'bf16'": "unknown key 'model_cfg.cast_dtype'",
    "model_cfg.multimodal_cfg = {}": "CoCa",
    "model_cfg = 'del'": "it has no 'model_cfg'",
    "preprocess_cfg = 'del'": "it has no 'preprocess_cfg'",
    "quick_gelu = True": "'quick_gelu' stands beside 'model_cfg'.*belongs into 'model_cfg'",
    "mean = [0.5, 0.5, 0.5]": "'mean' stands beside .*belongs into 'preprocess_cfg'",
    # of the pictures
    "preprocess_cfg.men = [0, 0, 0]": "unknown key 'preprocess_cfg.men'; did you mean 'mean'",
    "preprocess_cfg.image_mean = [0, 0, 0]": "unknown key 'preprocess_cfg.image_mean'",
    "preprocess_cfg.mean = [0.5, 0.5]": "preprocess_cfg.mean' is .0.5, 0.5.; take three numbers",
    "preprocess_cfg.mean = 0.5": "preprocess_cfg.mean' is 0.5; take three numbers",
    "preprocess_cfg.mean = ['0', '0', '0']": "take three numbers",
    "preprocess_cfg.mean = [122.8, 116.7, 104.1]": "pixels from 0 to 1",
    "preprocess_cfg.std = [0.2, 0.0, 0.2]": "preprocess_cfg.std' .*divided by 0",
    "preprocess_cfg.std = [-0.2, 0.2, 0.2]": "preprocess_cfg.std'",
    "preprocess_cfg.std = [1e400, 0.2, 0.2]": "preprocess_cfg.std'",
    "preprocess_cfg.mode = 'BGR'": 'preprocess_cfg.mode\' is "BGR"; known are "RGB"',
    "preprocess_cfg.interpolation = 'lanczos'": 'interpolation\' is "lanczos"; known are "bicubic"',
    "preprocess_cfg.resize_mode = 'crop'": 'resize_mode\' is "crop"; known are "shortest"',
    "preprocess_cfg.fill_color = 300": "fill_color' is 300; take a whole number from 0 to 255",
    "preprocess_cfg.size = 224": "preprocess_cfg.size' is 224; but the vision tower reads .* 16;",
    "preprocess_cfg.size = [16, 24]": "preprocess_cfg.size' is .16, 24.; but",
}


@pytest.mark.parametrize("edit", DAMAGED)
def test_a_config_that_would_be_taken_for_another_is_refused(folder, edit):
    place, value = edit.split(" = ", 1)
    path = changed(folder, place, eval(value, {}))
    with pytest.raises(InputError, match=DAMAGED[edit]) as caught:
        load_backbone(folder)
    assert str(path) in str(caught.value)


def test_a_vocabulary_of_another_size_than_the_weights_s(folder):
    changed(folder, "model_cfg.text_cfg.vocab_size", 49408)
    with pytest.raises(InputError, match="tensor 'token_embedding.weight' is .1728, 32., but"):
        load_backbone(folder)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("preprocess_cfg.size", 16),
        ("preprocess_cfg.size", [16, 16]),
        ("preprocess_cfg.mean", None),
        ("preprocess_cfg.std", "del"),
        ("preprocess_cfg.interpolation", "random"),
        ("model_cfg.text_cfg.eos_id", None),
        ("model_cfg.text_cfg.hf_model_name", None),
        ("model_cfg.quick_gelu", False),
        ("license", "mit"),
    ],
)
def test_what_changes_nothing_or_means_open_clip_s_own_is_taken(folder, place, value):
    if value is None and place.startswith("model_cfg.text_cfg.eos"):
        value = 1727
    changed(folder, place, value)
    found = load_backbone(folder)
    theirs = {"mean": (0.48145466, 0.4578275, 0.40821073)}
    theirs["std"] = (0.26862954, 0.26130258, 0.27577711)
    key = place.rpartition(".")[2]
    if key in theirs:
        assert tuple(found.preprocess[key]) == theirs[key]
    assert found.preprocess["size"] == side_read(folder) == 16


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "it is no object"),
        ("{", "not valid JSON"),
        (json.dumps(CONFIG)[:-1] + ', "model_cfg": {}}', "'model_cfg' stands twice"),
        ("\ufeff" + json.dumps(CONFIG), "not valid JSON"),
    ],
)
def test_a_config_that_is_none(folder, text, words):
    path = folder / "open_clip_config.json"
    path.write_text(text, encoding="utf-8")
    for read in (load_backbone, side_read):
        with pytest.raises(InputError, match=words) as caught:
            read(folder)
        assert str(path) in str(caught.value) and "dvc" not in str(caught.value)


def merges(folder, edit):
    path = folder / "bpe.txt.gz"
    lines = gzip.decompress(path.read_bytes()).decode().split("\n")
    path.write_bytes(gzip.compress("\n".join(edit(lines)).encode()))


VOCABULARIES = {
    "missing; .*vocab_size' in .* is 1728, so the backbone has a vocabulary of its own": (
        lambda f: (f / "bpe.txt.gz").unlink()
    ),
    "makes 1718 tokens, but .*vocab_size' in .* is 1728": lambda f: merges(f, lambda m: m[:-10]),
    "line 6 is 'a b c', where two parts": (
        lambda f: merges(f, lambda m: [*m[:5], "a b c", *m[6:]])
    ),
    "line 1216 is '', where two parts": lambda f: merges(f, lambda m: [*m, ""]),
    "not a complete gzip file": (
        lambda f: (f / "bpe.txt.gz").write_bytes((f / "bpe.txt.gz").read_bytes()[:1000])
    ),
    "bpe.txt.gz: not a complete gzip file .*obtain it again": (
        lambda f: (f / "bpe.txt.gz").write_text("i n")
    ),
}


@pytest.mark.parametrize("words", VOCABULARIES)
def test_a_vocabulary_that_is_not_the_weights_s(folder, words):
    VOCABULARIES[words](folder)
    with pytest.raises(InputError, match=words) as caught:
        load_backbone(folder)
    assert str(folder / "bpe.txt.gz") in str(caught.value)


def weights_with(folder, **tensors):
    path = folder / "open_clip_model.safetensors"
    save_file(load_file(path) | {k.replace("__", "."): v for k, v in tensors.items()}, path)
    return path


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "bool", "float8_e4m3fn", "int64"])
def test_quantised_weights_are_refused(folder, dtype):
    bias = torch.ones(32).to(getattr(torch, dtype))
    path = weights_with(folder, ln_final__bias=bias)
    with pytest.raises(InputError, match="tensor 'ln_final.bias' holds numbers of the kind") as e:
        load_backbone(folder)
    assert str(path) in str(e.value) and "float16 or bfloat16" in str(e.value)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_weights_of_every_floating_kind_are_read(folder, dtype):
    weights_with(folder, ln_final__bias=torch.full((32,), 0.5).to(dtype))
    assert torch.equal(load_backbone(folder).model.ln_final.bias, torch.full((32,), 0.5))


def test_a_matrix_of_zeros_is_named(folder):
    weights_with(folder, visual__proj=torch.zeros(32, 24))
    with pytest.raises(InputError, match="tensor 'visual.proj' holds nothing but zeros"):
        load_backbone(folder)


@pytest.mark.parametrize(
    ("stored", "words"),
    [
        (100.0, "1/τ itself: store its logarithm, 4.6052"),
        (1 / 0.07, "1/τ itself: store its logarithm, 2.6593"),
        (0.01, r"τ itself: store ln\(1/τ\), 4.6052"),
        (-math.log(100), r"ln τ: store ln\(1/τ\), 4.6052"),
        (1e30, "1/τ itself"),
        (0.0, "obtain the weights again"),
        (-1e4, "obtain the weights again"),
    ],
)
def test_a_temperature_that_cannot_be_meant_is_refused(folder, stored, words):
    path = weights_with(folder, logit_scale=torch.tensor(stored))
    with pytest.raises(InputError, match="tensor 'logit_scale' is .*" + words) as caught:
        load_backbone(folder)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("scale", [10.0, 100.0, 120.0])
def test_a_temperature_may_be_a_list_of_one(folder, scale):
    """As open_clip takes it, whatever 'nonscalar_logit_scale' says."""
    weights_with(folder, logit_scale=torch.tensor([math.log(scale)]))
    assert float(load_backbone(folder).logit_scale) == pytest.approx(scale)
    changed(folder, "model_cfg.nonscalar_logit_scale", True)
    assert float(load_backbone(folder).logit_scale) == pytest.approx(scale)


def test_missing_logit_scale_is_named(folder):
    path = folder / "open_clip_model.safetensors"
    weights = load_file(path)
    del weights["logit_scale"]
    save_file(weights, path)
    with pytest.raises(InputError, match="has no tensor 'logit_scale'"):
        load_backbone(folder)


def damaged_tokenizer(folder, edit):
    path = folder / "words" / "tokenizer.json"
    if not path.exists():
        path = folder / "tokenizer.json"
    value = json.loads(path.read_text())
    edit(value)
    path.write_text(json.dumps(value))


@pytest.mark.parametrize(
    ("kind", "edit", "words"),
    [
        (
            "siglip",
            lambda f: (f / "words" / "tokenizer.json").write_text("{}"),
            "its tokenizer cannot be used",
        ),
        (
            "siglip",
            lambda f: changed(f, TOKENIZER, {"padding_side": "left"}),
            "its tokenizer pads on the left",
        ),
        (
            "siglip",
            lambda f: changed(f, TOKENIZER, {"clean": "upper"}),
            'clean\' is "upper"; known are',
        ),
        ("siglip", lambda f: changed(f, TOKENIZER, {"revision": "main"}), "nothing is downloaded"),
        (
            "clipa",
            lambda f: changed(f, "model_cfg.text_cfg.pool_type", "argmax"),
            "pool_type' is 'argmax', which takes the highest token",
        ),
        (
            "eos",
            lambda f: changed(f, "model_cfg.text_cfg.eos_id", 5),
            "pool_type' is 'eos', which takes 'eos_id' 5 .*ends a text with token 2",
        ),
        (
            "bert",
            lambda f: changed(f, "model_cfg.text_cfg.hf_pooler_type", "mean"),
            'hf_pooler_type\' is "mean"; known are "mean_pooler"',
        ),
        (
            "bert",
            lambda f: changed(f, "model_cfg.text_cfg.hf_proj_type", "none"),
            'hf_proj_type\' is "none"; known are "linear", "mlp"',
        ),
        ("siglip", lambda f: changed(f, "model_cfg.vision_cfg.image_size", 224), "160 × 160"),
    ],
)
def test_towers_and_tokenizers_of_other_libraries(tmp_path, kind, edit, words):
    folder = write_backbone(tmp_path, kind)
    edit(folder)
    with pytest.raises(InputError, match=words) as caught:
        load_backbone(folder)
    assert str(folder) in str(caught.value)


def test_the_padding_of_a_hugging_face_encoder_is_its_tokenizer_s(tmp_path):
    folder = write_backbone(tmp_path, "bert")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"pad_token_id": 3}))
    with pytest.raises(InputError, match="pads with token 0, but .*config.json has 'pad_token_id"):
        load_backbone(folder)


def test_a_token_without_an_embedding_names_the_text(tmp_path):
    folder = write_backbone(tmp_path, "siglip")
    damaged_tokenizer(folder, lambda t: t["model"]["vocab"].update(tiger=99))
    text = load_backbone(folder).text
    with pytest.raises(InputError, match="'a tiger' has token 99 .* knows 12"):
        text.split(["a lion", "a tiger"])


def test_the_committed_backbone_has_the_usual_layout():
    assert load_backbone(ROOT / "demo" / "backbone").preprocess["size"] == 48
