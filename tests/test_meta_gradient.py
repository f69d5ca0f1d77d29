"""The meta-gradient against two independent computations, in float64."""

import copy

import open_clip
import pytest
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from pipeline.gram.meta import InnerStep, adapt, cross_entropy, meta_gradient
from pipeline.gram.params import Regulator
from pipeline.gram.regulator import initial_phi, regulate
from pipeline.prompts.coop import CoOp
from pipeline.clip.backbone import Backbone

T, K, M, N, Q = 3, 4, 2, 8, 12  # tasks, ways, context tokens, support and query pictures per task
NAMES = [["cat", "polar bear", "dog", "ox"], ["bus", "car", "ship", "cable car"], ["pie", "egg", "tea", "hot dog"]]


@pytest.fixture(scope="module")
def world():
    """A small CLIP in float64, tasks with random picture features, θ and a φ that is not the identity."""
    torch.manual_seed(0)
    model = open_clip.CLIP(
        embed_dim=16, vision_cfg=dict(image_size=16, patch_size=8, width=32, layers=1, head_width=16),
        text_cfg=dict(context_length=16, vocab_size=49408, width=24, heads=2, layers=2),
    ).double().eval().requires_grad_(False)
    tokenizer = open_clip.SimpleTokenizer(context_length=16)
    method = CoOp(Backbone(model, tokenizer, None, {}, torch.device("cpu")))
    classes = method.prepare(NAMES)
    make = lambda n: F.normalize(torch.randn(T, n, 16, dtype=torch.float64), dim=-1)
    labels = lambda n: torch.arange(n).remainder(K).expand(T, n)
    theta = {"text": 0.5 * torch.randn(M, 24, dtype=torch.float64)}
    phi = initial_phi(theta, Regulator(input_scale="none", bias=1.0))
    phi = {k: (v + 0.3 * torch.randn_like(v)).requires_grad_() for k, v in phi.items()}
    theta["text"].requires_grad_()
    return dict(method=method, classes=classes, support=make(N), query=make(Q), support_labels=labels(N), query_labels=labels(Q), theta=theta, phi=phi)


def found(world, phi, inner):
    w = world
    return meta_gradient(
        w["theta"], phi, T, lambda t: cross_entropy(w["method"].logits(t, w["classes"], w["support"]), w["support_labels"]),
        lambda t: w["method"].logits(t, w["classes"], w["query"]), w["query_labels"], inner,
    )


def plain_query_loss(world, theta, phi, inner):
    """One task after another, 77-token style: whole sequences through open_clip's own modules, no batching over tasks."""
    w, model = world, world["method"].backbone.model
    total = 0.0
    for t, names in enumerate(NAMES):
        ids = w["method"].backbone.tokenize(["X " * M + n + "." for n in names])
        end = ids.argmax(dim=-1)

        def logits(context, images):
            x = model.token_embedding(ids)
            x = torch.cat([x[:, :1], context.expand(K, -1, -1), x[:, 1 + M :]], dim=1) + model.positional_embedding
            x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask))
            text = F.normalize(x[torch.arange(K), end] @ model.text_projection, dim=-1)
            return model.logit_scale.exp() * images @ text.T

        context = theta
        for _ in range(inner.steps):
            g = torch.autograd.grad(F.cross_entropy(logits(context, w["support"][t]), w["support_labels"][t]), context, create_graph=True)[0]
            if phi:
                s = g.square().mean().sqrt() if inner.input_scale == "rms" else 1.0
                columns = (g / s).T  # the paper's d × M
                gamma = torch.tanh(phi["text.W_gamma"] @ columns + phi["text.b_gamma"][:, None])
                beta = torch.tanh(phi["text.W_beta"] @ columns + phi["text.b_beta"][:, None])
                g = s * (gamma * columns + beta).T
            context = context - inner.lr * g
        total = total + F.cross_entropy(logits(context, w["query"][t]), w["query_labels"][t])
    return total / T


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("scale", ["none", "rms"])
@pytest.mark.parametrize("regulated", [True, False])
def test_equals_plain_maml(world, steps, scale, regulated):
    inner = InnerStep(lr=0.7, steps=steps, input_scale=scale)
    phi = world["phi"] if regulated else {}
    ours = found(world, phi, inner)
    with sdpa_kernel(SDPBackend.MATH):
        loss = plain_query_loss(world, world["theta"]["text"], phi, inner)
        expected = torch.autograd.grad(loss, [world["theta"]["text"], *phi.values()])
    assert abs(ours.query_loss - loss.item()) < 1e-12
    for name, (a, b) in enumerate(zip([ours.theta["text"], *ours.phi.values()], expected)):
        assert relative(a, b) < 1e-9, name


@pytest.mark.parametrize("steps", [1, 2])
def test_equals_finite_differences(world, steps):
    inner, step = InnerStep(lr=0.7, steps=steps, input_scale="rms"), 1e-5
    ours = found(world, world["phi"], inner)
    generator = torch.Generator().manual_seed(3)
    for leaf, gradient in [(world["theta"]["text"], ours.theta["text"]), *((world["phi"][k], ours.phi[k]) for k in world["phi"])]:
        direction = torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype)
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                leaf.add_(sign * step * direction)
            values.append(found(world, world["phi"], inner).query_loss)
            with torch.no_grad():
                leaf.sub_(sign * step * direction)
        slope = (values[0] - values[1]) / (2 * step)
        assert slope == pytest.approx((gradient * direction).sum().item(), rel=1e-5, abs=1e-9)


def test_identity_regulator_is_maml(world):
    """γ = 1 and β = 0 (tanh saturates at a bias of 30) give the same as no regulator at all."""
    d = 24
    zero = lambda *s: torch.zeros(*s, dtype=torch.float64, requires_grad=True)
    one = {"text.W_gamma": zero(d, d), "text.b_gamma": torch.full((d,), 30.0, dtype=torch.float64, requires_grad=True), "text.W_beta": zero(d, d), "text.b_beta": zero(d)}
    inner = InnerStep(lr=0.7, steps=2)
    assert relative(found(world, one, inner).theta["text"], found(world, {}, inner).theta["text"]) < 1e-10


def test_first_order_is_the_gradient_at_the_adapted_tokens(world):
    """And it is not the second-order one: if second order were silently dropped, this would fail."""
    first = found(world, world["phi"], InnerStep(lr=0.7, second_order=False))
    second = found(world, world["phi"], InnerStep(lr=0.7, second_order=True))
    w = world
    with sdpa_kernel(SDPBackend.MATH):
        copies = {"text": w["theta"]["text"].detach().expand(T, M, 24).clone().requires_grad_()}
        adapted, _ = adapt(copies, {k: v.detach() for k, v in w["phi"].items()}, lambda t: cross_entropy(w["method"].logits(t, w["classes"], w["support"]), w["support_labels"]), InnerStep(lr=0.7, second_order=False))
        leaf = {"text": adapted["text"].detach().requires_grad_()}
        loss = cross_entropy(w["method"].logits(leaf, w["classes"], w["query"]), w["query_labels"]).mean()
        expected = torch.autograd.grad(loss, leaf["text"])[0].sum(dim=0)
    assert relative(first.theta["text"], expected) < 1e-10
    assert relative(first.theta["text"], second.theta["text"]) > 0.01
    assert first.query_loss == pytest.approx(second.query_loss, abs=1e-12)


def test_tasks_do_not_mix(world):
    """A task's adapted tokens are the same alone and in a batch."""
    w, inner = world, InnerStep(lr=0.7, steps=2)
    with sdpa_kernel(SDPBackend.MATH):
        loss = lambda t: cross_entropy(w["method"].logits(t, w["classes"], w["support"]), w["support_labels"])
        batch, _ = adapt({"text": w["theta"]["text"].expand(T, M, 24)}, w["phi"], loss, inner)
        for t in range(T):
            classes = w["method"].prepare([NAMES[t]])
            alone = lambda x: cross_entropy(w["method"].logits(x, classes, w["support"][t : t + 1]), w["support_labels"][t : t + 1])
            single, _ = adapt({"text": w["theta"]["text"].unsqueeze(0)}, w["phi"], alone, inner)
            assert relative(single["text"][0], batch["text"][t]) < 1e-12


def test_regulator_by_hand():
    """Eq 5–6 on numbers small enough to compute on paper."""
    import math

    phi = {"text.W_gamma": torch.tensor([[1.0, 2.0], [0.0, -1.0]]), "text.b_gamma": torch.tensor([0.5, 0.0]), "text.W_beta": torch.tensor([[0.0, 1.0], [1.0, 0.0]]), "text.b_beta": torch.tensor([0.0, -1.0])}
    g = torch.tensor([[[0.3, -0.2]]])
    gamma = [math.tanh(0.3 - 0.4 + 0.5), math.tanh(0.2)]
    beta = [math.tanh(-0.2), math.tanh(0.3 - 1.0)]
    expected = torch.tensor([[[gamma[0] * 0.3 + beta[0], gamma[1] * -0.2 + beta[1]]]])
    assert torch.allclose(regulate(phi, {"text": g})["text"], expected, atol=1e-6)


def test_rms_scaling_commutes_with_the_gradient_size():
    """With input_scale rms, a gradient a thousand times smaller is regulated in the same proportion."""
    torch.manual_seed(1)
    phi = {k: v + 0.2 * torch.randn_like(v) for k, v in initial_phi({"text": torch.zeros(2, 5)}, Regulator(input_scale="rms", bias=2.0)).items()}
    g = torch.randn(1, 2, 5)
    assert torch.allclose(1e-3 * regulate(phi, {"text": g}, "rms")["text"], regulate(phi, {"text": 1e-3 * g}, "rms")["text"], rtol=1e-5)


def test_start_of_the_regulator_is_almost_plain_descent():
    phi = initial_phi({"text": torch.zeros(2, 5)}, Regulator(input_scale="rms", bias=2.0))
    g = torch.randn(3, 2, 5)
    assert torch.allclose(regulate(phi, {"text": g}, "rms")["text"], 0.9640276 * g, rtol=1e-5)
    assert copy.deepcopy(phi).keys() == {"text.W_gamma", "text.b_gamma", "text.W_beta", "text.b_beta"}
