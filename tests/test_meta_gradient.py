"""The meta-gradient in float64: against torch.func, higher, torchopt and finite differences.

The oracles share no code with the pipeline's own forward: they go task by task through open_clip's
modules with whole sequences, and compute R^φ on the paper's d × M columns.
"""

import math

import higher
import open_clip
import pytest
import torch
import torchopt
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from pipeline.clip.backbone import Backbone
from pipeline.clip.text import text_tower
from pipeline.clip.vision import vision_tower
from pipeline.gram.meta import InnerStep, adapt, agreement, cross_entropy, meta_gradient
from pipeline.gram.params import Regulator
from pipeline.gram.regulator import initial_phi, regulate
from pipeline.prompts import METHODS

T, K, N, Q = 3, 4, 8, 12  # tasks, ways, support and query pictures per task
NAMES = [
    ["cat", "polar bear", "dog", "ox"],
    ["bus", "car", "ship", "cable car"],
    ["pie", "egg", "tea", "hot dog"],
]
TEMPLATE = "a photo of a {}."
TOLERANCE = 1e-9  # float64; dropping second order, β or the scale changes more than 1e-3
KINDS = ("coop", "vpt", "joint", "coupled", "cocoop")
TOKENS = {"coop": 2, "vpt": 3, "joint": 4, "coupled": 2, "cocoop": 2}


def small_backbone(text_layers=2, vision_layers=2):
    """A CLIP with random weights in float64."""
    torch.manual_seed(0)
    model = (
        open_clip.CLIP(
            embed_dim=16,
            vision_cfg={
                "image_size": 16,
                "patch_size": 8,
                "width": 32,
                "layers": vision_layers,
                "head_width": 16,
            },
            text_cfg={
                "context_length": 16,
                "vocab_size": 49408,
                "width": 24,
                "heads": 2,
                "layers": text_layers,
            },
        )
        .double()
        .eval()
        .requires_grad_(False)
    )
    tokenizer = open_clip.SimpleTokenizer(context_length=16)
    return Backbone(
        model,
        text_tower(model, tokenizer),
        vision_tower(model),
        tokenizer,
        None,
        {},
        16,
        torch.device("cpu"),
    )


class World:
    """One method on three tasks of random pictures, with a θ and a φ that are not their starts."""

    def __init__(
        self, backbone: Backbone, kind: str, per_token: bool = True, depth: int = 1
    ) -> None:
        self.kind, self.backbone, self.model = kind, backbone, backbone.model
        self.method = METHODS[kind](backbone, TEMPLATE, depth)
        generator = torch.Generator().manual_seed(5)
        draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
        pictures = lambda n: (
            draw(T, n, 3, 16, 16)
            if self.method.sees_pixels
            else F.normalize(draw(T, n, 16), dim=-1)
        )
        self.pictures = {"support": pictures(N), "query": pictures(Q)}
        self.labels = {
            "support": torch.arange(N).remainder(K).expand(T, N),
            "query": (torch.arange(Q) // 2).remainder(K).expand(T, Q),
        }
        theta = {
            k: v.double() + 0.3 * draw(*v.shape)
            for k, v in self.method.initial(TOKENS[kind], generator).items()
        }
        phi = initial_phi(
            theta,
            Regulator(input_scale="none", bias=1.0, weight_std=0.0, bias_per_token=per_token),
            generator,
        )
        self.theta = {k: v.requires_grad_() for k, v in theta.items()}
        self.phi = {k: (v + 0.3 * draw(*v.shape)).requires_grad_() for k, v in phi.items()}
        self.classes = self.method.prepare(NAMES)
        self.seen = {part: self.method.look(x) for part, x in self.pictures.items()}

    # the pipeline's own computation

    def logits(self, tokens, part):
        return self.method.logits(tokens, self.classes, self.seen[part])

    def loss(self, tokens, part):
        return cross_entropy(self.logits(tokens, part), self.labels[part])

    def found(self, phi, inner):
        return meta_gradient(
            self.theta,
            phi,
            T,
            lambda t: self.loss(t, "support"),
            lambda t: self.logits(t, "query"),
            self.labels["query"],
            inner,
        )

    # the oracles': one task, no batching over tasks, nothing cut or cached

    def plain_text(self, names, layers):
        """Whole sequences through open_clip's text tower; `layers`: context at the input, and
        after each following block.
        """
        m, count, n = self.model, len(layers[0]), len(names)
        ids = self.backbone.tokenize([" ".join(["X"] * count + [name + "."]) for name in names])
        put = lambda x, rows: torch.cat(
            [x[:, :1], rows.expand(n, -1, -1), x[:, 1 + count :]], dim=1
        )
        x = put(m.token_embedding(ids), layers[0]) + m.positional_embedding
        for i, block in enumerate(m.transformer.resblocks):
            x = block(put(x, layers[i]) if 0 < i < len(layers) else x, attn_mask=m.attn_mask)
        return F.normalize(
            m.ln_final(x)[torch.arange(n), ids.argmax(dim=-1)] @ m.text_projection, dim=-1
        )

    def plain_images(self, pixels, layers):
        """VPT by hand: learned tokens behind the patches, replaced after each following block."""
        v, n = self.model.visual, len(pixels)
        patches = v.conv1(pixels).flatten(2).transpose(1, 2)
        patches = (
            torch.cat([v.class_embedding.expand(n, 1, -1), patches], dim=1) + v.positional_embedding
        )
        x = torch.cat([v.ln_pre(patches), v.ln_pre(layers[0]).expand(n, -1, -1)], dim=1)
        for i, block in enumerate(v.transformer.resblocks):
            x = block(
                torch.cat([x[:, : patches.shape[1]], layers[i].expand(n, -1, -1)], dim=1)
                if 0 < i < len(layers)
                else x
            )
        return F.normalize(v.ln_post(x[:, 0]) @ v.proj, dim=-1)

    def plain_logits(self, tokens, t, part):
        names, pictures, scale = NAMES[t], self.pictures[part][t], self.model.logit_scale.exp()
        if self.kind == "cocoop":
            rows = []
            for feature in pictures:
                hidden = torch.relu(tokens["net_in"][:, :-1] @ feature + tokens["net_in"][:, -1])
                shift = tokens["net_out"][:, :-1] @ hidden + tokens["net_out"][:, -1]
                rows.append(self.plain_text(names, [tokens["text"] + shift]) @ feature)
            return scale * torch.stack(rows)
        if self.kind == "vpt":
            text = self.model.encode_text(
                self.backbone.tokenize([TEMPLATE.format(n) for n in names]), normalize=True
            )
        else:
            text = self.plain_text(names, tokens["text"].chunk(self.method.depth))
        if self.kind == "coop":
            images = pictures
        elif self.kind == "coupled":
            layers = zip(
                tokens["text"].chunk(self.method.depth), tokens["coupling"].chunk(self.method.depth)
            )
            images = self.plain_images(
                pictures, [F.linear(x, m[:, :-1], m[:, -1]) for x, m in layers]
            )
        else:
            images = self.plain_images(pictures, tokens["image"].chunk(self.method.depth))
        return scale * images @ text.T

    def plain_loss(self, tokens, t, part):
        return F.cross_entropy(self.plain_logits(tokens, t, part), self.labels[part][t])


def plain_regulated(phi, gradients, scale):
    """Eq 5–6 on columns, with the input scale of the configuration."""
    if not phi:
        return gradients
    out = {}
    for name, g in gradients.items():
        s = g.square().mean().sqrt() if scale == "rms" else 1.0
        columns = g.T / s  # the paper's d × M
        gamma = torch.tanh(phi[f"{name}.W_gamma"] @ columns + phi[f"{name}.b_gamma"].T)
        beta = torch.tanh(phi[f"{name}.W_beta"] @ columns + phi[f"{name}.b_beta"].T)
        out[name] = s * (gamma * columns + beta).T
    return out


def mean_over_tasks(world, of_task):
    return sum(of_task(t) for t in range(T)) / T


def by_torch_func(world, phi, inner):
    def query_loss(theta, phi, t):
        tokens = theta
        for _ in range(inner.steps):
            g = torch.func.grad(lambda x: world.plain_loss(x, t, "support"))(tokens)
            if not inner.second_order:
                g = {k: v.detach() for k, v in g.items()}
            step = plain_regulated(phi, g, inner.input_scale)
            tokens = {k: tokens[k] - inner.lr * step[k] for k in tokens}
        return world.plain_loss(tokens, t, "query")

    grad = torch.func.grad(
        lambda theta, phi: mean_over_tasks(world, lambda t: query_loss(theta, phi, t)),
        argnums=(0, 1),
    )
    return grad(
        {k: v.detach() for k, v in world.theta.items()}, {k: v.detach() for k, v in phi.items()}
    )


class Learner(nn.Module):
    """The tokens as a module's parameters, for libraries that adapt modules."""

    def __init__(self, world):
        super().__init__()
        self.world = world
        for name, values in world.theta.items():
            self.register_parameter(name, nn.Parameter(values.detach().clone()))

    def tokens(self):
        return {name: getattr(self, name) for name in self.world.theta}

    def forward(self, t, part):
        return self.world.plain_loss(self.tokens(), t, part)


def gradients_of(loss, learner, phi):
    leaves = list(dict(learner.named_parameters()).values())
    found = torch.autograd.grad(loss, [*leaves, *phi.values()])
    return dict(zip(learner.world.theta, found)), dict(zip(phi, found[len(leaves) :]))


def by_higher(world, phi, inner):
    learner = Learner(world)
    sgd = torch.optim.SGD(learner.parameters(), lr=inner.lr)

    def regulated(gradients):
        return list(
            plain_regulated(phi, dict(zip(world.theta, gradients)), inner.input_scale).values()
        )

    def query_loss(t):
        with higher.innerloop_ctx(learner, sgd, copy_initial_weights=False) as (
            functional,
            differentiable,
        ):
            for _ in range(inner.steps):
                differentiable.step(functional(t, "support"), grad_callback=regulated)
            return functional(t, "query")

    return gradients_of(mean_over_tasks(world, query_loss), learner, phi)


def by_torchopt(world, phi, inner):
    """R^φ as a gradient transformation in front of torchopt's differentiable SGD."""
    learner = Learner(world)

    def update(updates, state, *, params=None, inplace=True):
        # torchopt sorts names
        regulated = plain_regulated(phi, dict(zip(sorted(world.theta), updates)), inner.input_scale)
        return tuple(regulated.values()), state

    regulator = torchopt.base.GradientTransformation(
        lambda params: torchopt.base.EmptyState(), update
    )
    start = torchopt.extract_state_dict(learner, by="reference")
    leaves = learner.tokens()

    def query_loss(t):
        torchopt.recover_state_dict(learner, start)
        optimiser = torchopt.MetaOptimizer(
            learner, torchopt.chain(regulator, torchopt.sgd(lr=inner.lr))
        )
        for _ in range(inner.steps):
            optimiser.step(learner(t, "support"))
        return learner(t, "query")

    loss = mean_over_tasks(world, query_loss)
    found = torch.autograd.grad(loss, [*leaves.values(), *phi.values()])
    return dict(zip(leaves, found)), dict(zip(phi, found[len(leaves) :]))


def heavy(*values):
    """Minutes together, beside the same with prompts of text alone."""
    return [
        pytest.param(*([v] if isinstance(v, str) else v), marks=pytest.mark.whole) for v in values
    ]


class Worlds(dict):
    """Made when they are asked for."""

    def __init__(self, backbone):
        self.backbone = backbone

    def __missing__(self, kind):
        self[kind] = World(self.backbone, kind, depth=2 if kind == "coupled" else 1)
        return self[kind]


ORACLES = {"torch.func": by_torch_func, "higher": by_higher, "torchopt": by_torchopt}


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


def same(ours, expected):
    theta, phi = expected
    assert ours.theta.keys() == theta.keys() and ours.phi.keys() == phi.keys()
    for name, gradient in (theta | phi).items():
        assert gradient.norm() > 0, name
        assert relative((ours.theta | ours.phi)[name], gradient) < TOLERANCE, name


@pytest.fixture(scope="module")
def backbone():
    return small_backbone()


@pytest.fixture(scope="module")
def worlds(backbone):
    return Worlds(backbone)


def compared(world, oracle, phi, inner):
    ours = world.found(phi, inner)
    with sdpa_kernel(SDPBackend.MATH):
        same(ours, ORACLES[oracle](world, phi, inner))


@pytest.mark.parametrize("steps", [1, *heavy((3,))])
@pytest.mark.parametrize("oracle", ORACLES)
@pytest.mark.parametrize("kind", ["coop", *heavy("vpt", "joint")])
def test_textual_visual_and_joint_prompts_equal_three_other_ways(worlds, kind, oracle, steps):
    world = worlds[kind]
    compared(world, oracle, world.phi, InnerStep(lr=0.7, steps=steps, input_scale="rms"))


@pytest.mark.parametrize("kind", ["coupled", "cocoop"])
@pytest.mark.whole
def test_coupled_and_picture_dependent_prompts(worlds, kind):
    compared(
        worlds[kind], "torch.func", worlds[kind].phi, InnerStep(lr=0.3, steps=2, input_scale="rms")
    )


@pytest.mark.parametrize(
    ("per_token", "scale"), [(False, "rms"), *heavy((False, "none"), (True, "none"), (True, "rms"))]
)
def test_one_bias_for_all_tokens_or_one_for_each(backbone, scale, per_token):
    world = World(backbone, "vpt", per_token)
    assert world.phi["image.b_beta"].shape == (TOKENS["vpt"] if per_token else 1, 32)
    compared(world, "torch.func", world.phi, InnerStep(lr=0.7, steps=2, input_scale=scale))


@pytest.mark.parametrize("kind", ["coop", *heavy("joint")])
@pytest.mark.parametrize("oracle", ORACLES)
def test_without_a_regulator_it_is_maml(worlds, oracle, kind):
    compared(worlds[kind], oracle, {}, InnerStep(lr=0.7, steps=2))


def test_losses_are_those_at_the_adapted_tokens(worlds):
    """Task by task, and not at θ: the oracles see gradients only."""
    world, inner = worlds["joint"], InnerStep(lr=0.7, steps=2, input_scale="rms")
    ours = world.found(world.phi, inner)
    adapted, raw = adapt(
        {k: v.expand(T, *v.shape) for k, v in world.theta.items()},
        world.phi,
        lambda t: world.loss(t, "support"),
        inner,
    )
    for t in range(T):
        own = {k: v[t] for k, v in adapted.items()}
        logits = world.plain_logits(own, t, "query")
        assert ours.query_loss[t].item() == pytest.approx(
            F.cross_entropy(logits, world.labels["query"][t]).item(), abs=1e-12
        )
        assert ours.query_accuracy[t].item() == pytest.approx(
            (logits.argmax(1) == world.labels["query"][t]).float().mean().item()
        )
        expected = torch.autograd.grad(
            world.plain_loss(world.theta, t, "support"), list(world.theta.values())
        )
        for name, g in zip(world.theta, expected):
            assert relative(raw[name][t], g) < TOLERANCE


@pytest.mark.parametrize("kind", ["coop", *heavy("joint", "coupled")])
def test_equals_finite_differences(worlds, kind):
    world, inner, step = worlds[kind], InnerStep(lr=0.3, steps=2, input_scale="rms"), 1e-5
    ours = world.found(world.phi, inner)
    generator = torch.Generator().manual_seed(3)
    for name, leaf in (world.theta | world.phi).items():
        direction = torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype)
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                leaf.add_(sign * step * direction)
            values.append(world.found(world.phi, inner).query_loss.mean().item())
            with torch.no_grad():
                leaf.sub_(sign * step * direction)
        slope = (values[0] - values[1]) / (2 * step)
        assert slope == pytest.approx(
            ((ours.theta | ours.phi)[name] * direction).sum().item(), rel=1e-5, abs=1e-9
        ), name


def test_identity_regulator_is_maml(worlds):
    """γ = 1 and β = 0 (tanh saturates at a bias of 30) give the same as no regulator at all."""
    world, inner = worlds["joint"], InnerStep(lr=0.7, steps=2)
    one = {
        k: torch.full_like(v, 30.0 if k.endswith("b_gamma") else 0.0).requires_grad_()
        for k, v in world.phi.items()
    }
    with_one, without = world.found(one, inner), world.found({}, inner)
    for name in world.theta:
        assert relative(with_one.theta[name], without.theta[name]) < 1e-10


@pytest.mark.parametrize("kind", ["coop", *heavy("vpt", "joint")])
def test_first_order_takes_the_support_gradient_as_a_constant(worlds, kind):
    """And it is not the second-order one: if second order were silently dropped, this would
    fail.
    """
    world = worlds[kind]
    first, second = (
        world.found(world.phi, InnerStep(lr=0.7, steps=2, second_order=order, input_scale="rms"))
        for order in (False, True)
    )
    with sdpa_kernel(SDPBackend.MATH):
        same(
            first,
            by_torch_func(
                world, world.phi, InnerStep(lr=0.7, steps=2, second_order=False, input_scale="rms")
            ),
        )
    for name in world.theta:
        assert relative(first.theta[name], second.theta[name]) > 0.01
    assert torch.allclose(first.query_loss, second.query_loss, atol=1e-12)

    # θ' − θ does not depend on θ then, so ∇θ is the query's gradient at θ'.
    copies = {
        k: v.detach().expand(T, *v.shape).clone().requires_grad_() for k, v in world.theta.items()
    }
    adapted, _ = adapt(
        copies,
        world.phi,
        lambda t: world.loss(t, "support"),
        InnerStep(lr=0.7, steps=2, second_order=False, input_scale="rms"),
    )
    leaves = {k: v.detach().requires_grad_() for k, v in adapted.items()}
    expected = torch.autograd.grad(world.loss(leaves, "query").mean(), list(leaves.values()))
    for name, g in zip(world.theta, expected):
        assert relative(first.theta[name], g.sum(dim=0)) < 1e-10


@pytest.mark.parametrize("kind", ["coop", *heavy(*KINDS[1:])])
def test_tasks_do_not_mix(worlds, kind):
    """A task's adapted tokens are the same alone and in a batch."""
    world, inner = worlds[kind], InnerStep(lr=0.3, steps=2, input_scale="rms")
    batch, _ = adapt(
        {k: v.expand(T, *v.shape) for k, v in world.theta.items()},
        world.phi,
        lambda t: world.loss(t, "support"),
        inner,
    )
    for t in range(T):
        classes, one = world.method.prepare([NAMES[t]]), slice(t, t + 1)

        def alone(tokens, classes=classes, one=one):
            return cross_entropy(
                world.method.logits(tokens, classes, world.seen["support"][one]),
                world.labels["support"][one],
            )

        single, _ = adapt(
            {k: v.unsqueeze(0) for k, v in world.theta.items()}, world.phi, alone, inner
        )
        for name in world.theta:
            assert relative(single[name][0], batch[name][t]) < 1e-11


def test_agreement_is_the_cosine_with_the_query_gradient(worlds):
    world = worlds["joint"]
    raw = {k: v.detach() for k, v in world.found({}, InnerStep(lr=0.7)).raw.items()}
    seen = agreement(world.theta, world.phi, raw, lambda t: world.loss(t, "query"), "rms")
    identity = agreement(world.theta, {}, raw, lambda t: world.loss(t, "query"), "rms")
    assert torch.equal(identity.raw, identity.regulated) and torch.equal(identity.raw, seen.raw)
    for t in range(T):
        flat = lambda gradients: torch.cat([g.flatten() for g in gradients])
        support, query = (
            dict(
                zip(
                    world.theta,
                    torch.autograd.grad(
                        world.plain_loss(world.theta, t, part), list(world.theta.values())
                    ),
                )
            )
            for part in ("support", "query")
        )
        cosine = lambda a, b: (a @ b / (a.norm() * b.norm())).item()
        assert seen.raw[t].item() == pytest.approx(
            cosine(flat(support.values()), flat(query.values())), abs=1e-9
        )
        turned = plain_regulated(world.phi, support, "rms")
        assert seen.regulated[t].item() == pytest.approx(
            cosine(flat(turned.values()), flat(query.values())), abs=1e-9
        )
        assert seen.start_loss[t].item() == pytest.approx(
            world.plain_loss(world.theta, t, "query").item(), abs=1e-12
        )


def test_regulator_by_hand():
    """Eq 5–6 on numbers small enough to compute on paper; the second token has a bias of its
    own.
    """
    phi = {
        "text.W_gamma": torch.tensor([[1.0, 2.0], [0.0, -1.0]]),
        "text.b_gamma": torch.tensor([[0.5, 0.0], [-0.5, 0.25]]),
        "text.W_beta": torch.tensor([[0.0, 1.0], [1.0, 0.0]]),
        "text.b_beta": torch.tensor([[0.0, -1.0], [0.0, 2.0]]),
    }
    g = torch.tensor([[[0.3, -0.2], [0.3, -0.2]]])
    gamma = [
        [math.tanh(0.3 - 0.4 + 0.5), math.tanh(0.2)],
        [math.tanh(0.3 - 0.4 - 0.5), math.tanh(0.2 + 0.25)],
    ]
    beta = [[math.tanh(-0.2), math.tanh(0.3 - 1.0)], [math.tanh(-0.2), math.tanh(0.3 + 2.0)]]
    expected = [[[a[0] * 0.3 + b[0], a[1] * -0.2 + b[1]] for a, b in zip(gamma, beta)]]
    assert torch.allclose(regulate(phi, {"text": g})["text"], torch.tensor(expected), atol=1e-6)
    shared = phi | {k: phi[k][:1] for k in ("text.b_gamma", "text.b_beta")}
    assert torch.allclose(
        regulate(shared, {"text": g})["text"], torch.tensor([[expected[0][0]] * 2]), atol=1e-6
    )


def regulator(**changes):
    return Regulator(
        **(
            {"input_scale": "rms", "bias": 2.0, "weight_std": 0.0, "bias_per_token": False}
            | changes
        )
    )


def test_rms_scaling_commutes_with_the_gradient_size():
    """With input_scale rms, a task's gradient a thousand times smaller is regulated in the same
    proportion.
    """
    generator = torch.Generator().manual_seed(1)
    phi = initial_phi({"text": torch.zeros(2, 5)}, regulator(weight_std=0.3), generator)
    g = torch.randn(2, 2, 5, generator=generator)
    small = g * torch.tensor([1.0, 1e-3]).view(2, 1, 1)
    expected = regulate(phi, {"text": g}, "rms")["text"] * torch.tensor([1.0, 1e-3]).view(2, 1, 1)
    assert torch.allclose(expected, regulate(phi, {"text": small}, "rms")["text"], rtol=1e-5)


def test_start_of_the_regulator():
    """W = 0 is almost plain descent; W ~ N(0, std²) comes from the generator; biases are one for
    all tokens or one for each.
    """
    tokens = {"text": torch.zeros(2, 5), "image": torch.zeros(3, 40)}
    make = lambda seed=0, **changes: initial_phi(
        tokens, regulator(**changes), torch.Generator().manual_seed(seed)
    )
    phi, g = make(), {"text": torch.randn(3, 2, 5), "image": torch.randn(3, 3, 40)}
    for name, regulated in regulate(phi, g, "rms").items():
        assert torch.allclose(regulated, math.tanh(2.0) * g[name], rtol=1e-5)
    assert phi.keys() == {
        f"{m}.{k}" for m in tokens for k in ("W_gamma", "b_gamma", "W_beta", "b_beta")
    }
    assert phi["image.b_gamma"].shape == (1, 40) and make(bias_per_token=True)[
        "image.b_gamma"
    ].shape == (3, 40)
    one, again, other = (make(seed, weight_std=0.1) for seed in (1, 1, 2))
    for name in ("image.W_gamma", "image.W_beta"):
        assert torch.equal(one[name], again[name]) and not torch.equal(one[name], other[name])
        assert 0.095 < one[name].std() < 0.105
    assert (one["image.b_gamma"] == 2.0).all() and (one["image.b_beta"] == 0.0).all()
