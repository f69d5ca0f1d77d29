"""The prompt methods in float64: against plain loops over open_clip's modules, and how their
tokens begin.
"""

import dataclasses
import itertools

import pytest
import torch
from test_meta_gradient import KINDS, NAMES, TEMPLATE, TOKENS, K, T, World, small_backbone
from test_towers import write_backbone

from pipeline.clip import blocks
from pipeline.clip import text as clip_text
from pipeline.clip.backbone import load_backbone
from pipeline.errors import InputError
from pipeline.prompts import METHODS, base
from pipeline.prompts.base import check_prompts
from pipeline.prompts.template import Template


@pytest.fixture(scope="module")
def backbone():
    return small_backbone(text_layers=3, vision_layers=3)


DEPTHS = [
    *((kind, 1) for kind in KINDS),
    *((kind, depth) for kind in ("coop", "vpt", "joint", "coupled") for depth in (2, 3)),
]


def differing(world):
    """Tokens of T tasks that are all different, without gradients."""
    generator = torch.Generator().manual_seed(8)
    return {
        k: v.detach() + 0.2 * torch.randn(T, *v.shape, generator=generator, dtype=v.dtype)
        for k, v in world.theta.items()
    }


@pytest.mark.parametrize("kind, depth", DEPTHS)
def test_logits_equal_a_plain_loop(backbone, kind, depth):
    """Task by task; CoCoOp picture by picture; deep tokens replaced between open_clip's own
    blocks.
    """
    world = World(backbone, kind, depth=depth)
    tokens = differing(world)
    per_layer = TOKENS[kind] // 2 if kind == "joint" else TOKENS[kind]
    assert all(
        len(v) == depth * per_layer for k, v in world.theta.items() if k in ("text", "image")
    )
    with torch.no_grad():
        ours = world.logits(tokens, "query")
        for t in range(T):
            expected = world.plain_logits({k: v[t] for k, v in tokens.items()}, t, "query")
            assert expected.std() > 0.01
            assert (ours[t] - expected).abs().max() < 1e-10


@pytest.mark.parametrize("kind, depth", DEPTHS)
def test_every_token_takes_part(backbone, kind, depth):
    """A row without a gradient would be learned in vain."""
    world = World(backbone, kind, depth=depth)
    tokens = {k: v.requires_grad_() for k, v in differing(world).items()}
    gradients = torch.autograd.grad(world.loss(tokens, "query").sum(), list(tokens.values()))
    for name, g in zip(tokens, gradients):
        assert (g.abs().amax(dim=-1) > 1e-9).all() or name.startswith("net"), name
        assert (g.flatten(1).abs().amax(dim=1) > 0).all(), name


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("kind", ["vpt", "joint"])
def test_the_order_of_visual_tokens_does_not_matter(backbone, kind, depth):
    """They have no position; in a text, order counts, and so does the layer."""
    world = World(backbone, kind, depth=depth)
    tokens = differing(world)
    per_layer = tokens["image"].shape[1] // depth
    turned = tokens | {
        "image": tokens["image"].unflatten(1, (depth, -1)).roll(1, dims=2).flatten(1, 2)
    }
    assert per_layer > 1 and not torch.equal(turned["image"], tokens["image"])
    with torch.no_grad():
        assert torch.allclose(
            world.logits(turned, "query"), world.logits(tokens, "query"), atol=1e-10
        )
        if depth > 1:
            swapped = tokens | {"image": tokens["image"].roll(per_layer, dims=1)}
            assert not torch.allclose(
                world.logits(swapped, "query"), world.logits(tokens, "query"), atol=1e-4
            )
        if "text" in tokens:
            other = tokens | {"text": tokens["text"].roll(1, dims=1)}
            assert not torch.allclose(
                world.logits(other, "query"), world.logits(tokens, "query"), atol=1e-4
            )


def test_a_joint_prompt_divides_its_tokens_evenly(backbone):
    start = METHODS["joint"](backbone).initial(6, torch.Generator())
    assert {k: tuple(v.shape) for k, v in start.items()} == {"text": (3, 24), "image": (3, 32)}
    deep = METHODS["joint"](backbone, depth=2).initial(6, torch.Generator())
    assert {k: tuple(v.shape) for k, v in deep.items()} == {"text": (6, 24), "image": (6, 32)}
    with pytest.raises(InputError, match="there are 5; make 'context_tokens' an even number"):
        METHODS["joint"](backbone).initial(5, torch.Generator())


@pytest.mark.parametrize("kind", ["vpt", "joint", "coupled"])
def test_more_layers_than_the_vision_tower_has(kind):
    backbone = small_backbone(text_layers=4, vision_layers=3)
    with pytest.raises(
        InputError, match="'depth' is 4, but the backbone's vision tower has 3 blocks"
    ):
        METHODS[kind](backbone, depth=4)


@pytest.mark.parametrize("kind", ["coop", "joint", "coupled"])
def test_more_layers_than_the_text_tower_has(kind):
    shallow = small_backbone(text_layers=2, vision_layers=3)
    with pytest.raises(
        InputError, match="'depth' is 3, but the backbone's text tower has 2 blocks"
    ):
        METHODS[kind](shallow, depth=3)
    assert METHODS["vpt"](shallow, depth=3).depth == 3  # its text is fixed


def test_a_context_that_follows_the_picture_has_no_layers(backbone):
    with pytest.raises(
        InputError, match="'depth' is 2, but cocoop learns tokens at the text tower's input only"
    ):
        METHODS["cocoop"](backbone, depth=2)


@pytest.mark.parametrize("kind", ["vpt", "joint", "coupled"])
def test_visual_tokens_need_a_vision_transformer(backbone, kind):
    with pytest.raises(InputError, match="visual prompts need"):
        METHODS[kind](dataclasses.replace(backbone, vision=None))


@pytest.mark.parametrize("kind", ["coop", "cocoop", "coupled"])
def test_words_to_start_from(backbone, kind):
    """The given ones, otherwise the first of "a photo of a", beyond its four tokens random ones."""
    method, model = METHODS[kind](backbone), backbone.model
    embedded = lambda text, n: model.token_embedding(backbone.tokenize([text]))[0, 1 : 1 + n]
    assert torch.equal(
        method.initial(3, torch.Generator(), "a blurry picture")["text"],
        embedded("a blurry picture", 3),
    )
    assert torch.equal(method.initial(4, torch.Generator())["text"], embedded("a photo of a", 4))
    assert torch.equal(method.initial(3, torch.Generator())["text"], embedded("a photo of", 3))
    assert method.initial(5, torch.Generator())["text"].std() < 0.03
    with pytest.raises(
        InputError,
        match=(
            "the initial words 'a blurry picture' are 3 tokens of this backbone, but the method "
            "has 4 context tokens"
        ),
    ):
        method.initial(4, torch.Generator(), "a blurry picture")


def test_words_of_a_joint_prompt_are_for_its_text(backbone):
    start = METHODS["joint"](backbone, depth=2).initial(4, torch.Generator(), "a picture")
    expected = backbone.model.token_embedding(backbone.tokenize(["a picture"]))[0, 1:3]
    assert torch.equal(start["text"][:2], expected) and start["text"].shape[0] == 4


@pytest.mark.parametrize("kind, depth", DEPTHS)
def test_random_starts_come_from_the_generator(backbone, kind, depth):
    method = METHODS[kind](backbone, TEMPLATE, depth)
    one, again, other = (
        method.initial(6, torch.Generator().manual_seed(seed), "random") for seed in (1, 1, 2)
    )
    for name, values in one.items():
        assert torch.equal(values, again[name]) and not torch.equal(values, other[name]), name
        if name in ("text", "image"):
            assert 0.015 < values.std() < 0.025 and len(values.unique(dim=0)) == len(values)


@pytest.mark.parametrize("kind", KINDS)
def test_underscores_in_class_names_are_spaces(backbone, kind):
    world = World(backbone, kind)
    tokens = differing(world)
    with torch.no_grad():
        spaced = world.logits(tokens, "query")
        world.classes = world.method.prepare(
            [[name.replace(" ", "_") for name in names] for names in NAMES]
        )
        assert torch.equal(world.logits(tokens, "query"), spaced) and spaced.shape == (T, 12, K)


def encoded(backbone, *texts):
    return backbone.model.encode_text(backbone.tokenize(list(texts)), normalize=True)


def test_the_template_learns_nothing(backbone):
    method = Template(backbone, ["a drawing of a {}."])
    assert method.initial(4, torch.Generator()) == {}
    found = method.text_features({}, method.prepare([["polar_bear", "cat"]]))[0]
    assert torch.allclose(
        found, encoded(backbone, "a drawing of a polar bear.", "a drawing of a cat."), atol=1e-10
    )


def test_an_ensemble_is_the_normalised_mean_of_its_templates(backbone):
    method = Template(backbone, ["a drawing of a {}.", "{} texture."])
    expected = encoded(backbone, "a drawing of a cat.", "a drawing of a dog.") + encoded(
        backbone, "cat texture.", "dog texture."
    )
    found = method.text_features({}, method.prepare([["cat", "dog"]]))[0]
    assert torch.allclose(found, torch.nn.functional.normalize(expected, dim=-1), atol=1e-10)


@pytest.mark.parametrize(
    "kind, depth",
    [("coop", 1), pytest.param("cocoop", 1, marks=pytest.mark.whole), ("coupled", 2)],
)
def test_texts_in_parts_have_the_same_logits_and_gradients(backbone, kind, depth, monkeypatch):
    """Second derivatives, too: a head of many classes is computed part by part."""
    world = World(backbone, kind, depth=depth)

    def found():
        tokens = {name: value.requires_grad_() for name, value in differing(world).items()}
        with blocks.twice_differentiable():
            logits = world.logits(tokens, "query")
            first = torch.autograd.grad(
                logits.square().sum(), list(tokens.values()), create_graph=True
            )
            second = torch.autograd.grad(
                sum(g.square().sum() for g in first), list(tokens.values())
            )
        return [logits, *first, *second]

    whole, parts = found(), []
    again = blocks._again_backwards
    monkeypatch.setattr(
        blocks,
        "_again_backwards",
        lambda function, *tensors: parts.append(function) or again(function, *tensors),
    )
    monkeypatch.setattr("pipeline.clip.text.TEXTS_AT_ONCE", 4)
    monkeypatch.setattr("pipeline.prompts.cocoop.TEXTS_AT_ONCE", 4)
    for a, b in zip(whole, found(), strict=True):
        assert (a - b).abs().max() < 1e-9 * a.abs().max()
    assert len(parts) > 1


LONG = "a very long name " * 12  # the tower of the demo's backbone has fewer positions


@pytest.mark.parametrize("kind", ["template", *METHODS])
def test_a_name_longer_than_the_text_tower_is_named_by_every_method(backbone, kind):
    """Cut without a word, two such classes would have one prompt."""
    method = (
        Template(backbone, ["a photo of a {}."]) if kind == "template" else METHODS[kind](backbone)
    )
    with pytest.raises(InputError, match="class 'a very long name .* do not fit the text tower's"):
        method.prepare([["lion", LONG + "one", LONG + "two"]])


def test_a_name_that_fits_alone_but_not_behind_its_context(backbone):
    coop = METHODS["coop"](backbone)
    room = backbone.text.room
    name = " ".join(["lion"] * (room - 5))  # with its full stop and what stands around: room - 2
    classes = coop.prepare([["bear", name]])
    fits, too_many = (torch.zeros(1, n, backbone.text.width).double() for n in (2, 3))
    assert coop.text_features({"text": fits}, classes).shape[:2] == (1, 2)
    with pytest.raises(InputError, match=f"class '{name}': its prompt has {room - 2} tokens and 3"):
        coop.text_features({"text": too_many}, classes)


def test_a_text_that_just_fits_is_no_error(backbone):
    template = Template(backbone, ["{}"])
    room = backbone.text.room
    assert template.prepare([[" ".join(["lion"] * (room - 2)), "bear"]]).shape[1] == 2
    with pytest.raises(InputError, match=f"has {room + 1} tokens, which do not fit"):
        template.prepare([[" ".join(["lion"] * (room - 1)), "bear"]])


def test_names_that_the_tokenizer_cannot_tell_apart(backbone):
    check_prompts(backbone, ["lion", "bear"], "a photo of a {}.", "top")
    with pytest.raises(InputError, match="top: the classes 'Lion' and 'lion' are one prompt"):
        check_prompts(backbone, ["bear", "Lion", "lion"], "a photo of a {}.", "top")
    with pytest.raises(InputError, match="top: class 'a very long"):
        check_prompts(backbone, ["bear", LONG], "a photo of a {}.", "top")


@pytest.fixture
def padded(tmp_path, monkeypatch):
    """A padded backbone, 50 texts at once, 155 names, and how many texts its parts are given."""
    backbone, seen = load_backbone(write_backbone(tmp_path, "siglip")), []
    for module in (base, clip_text):
        monkeypatch.setattr(module, "TEXTS_AT_ONCE", 50)
    text, words = backbone.text, ["lion", "polar", "bear", "cable", "car"]
    names = [" ".join(w) for n in (1, 2, 3) for w in itertools.product(words, repeat=n)]
    tokenize, embed = text.tokenize, text.embed
    text.tokenize = lambda texts, **more: seen.append(len(texts)) or tokenize(texts, **more)
    text.embed = lambda ids: seen.append(len(ids)) or embed(ids)
    return backbone, names, seen


def test_many_names_are_checked_some_at_a_time(padded):
    """21,000 names on a padded tower of width 768 took 5.1 GB at once."""
    backbone, names, seen = padded
    check_prompts(backbone, names, "a photo of a {}.", "top")
    with pytest.raises(InputError, match="'cable car lion' and 'Cable car lion!' are one prompt"):
        check_prompts(backbone, [*names, "Cable car lion!"], "a photo of a {}.", "top")
    first, longest = " ".join(["bear"] * 25), " ".join(["lion"] * 30)
    with pytest.raises(InputError, match=f"top: class '{longest}': its prompt has 35 tokens"):
        check_prompts(backbone, [first, *names, longest], "a photo of a {}.", "top")
    assert max(seen) == 50


def test_many_names_are_encoded_some_at_a_time(padded, monkeypatch):
    backbone, names, seen = padded
    coop = METHODS["coop"](backbone)
    tokens = {"text": coop.initial(4, torch.Generator(), "a photo of a")["text"].unsqueeze(0)}
    classes = coop.prepare([names])
    seen.clear()
    parts = coop.text_features(tokens, classes)
    assert max(seen) == 50
    monkeypatch.setattr(clip_text, "TEXTS_AT_ONCE", 1000)
    assert torch.allclose(parts, coop.text_features(tokens, classes), atol=1e-6)
    assert max(seen) == len(names)
