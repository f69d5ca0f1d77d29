"""Algorithm 1's inner loop and meta-gradient, for a whole batch of tasks in one forward pass."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.clip.blocks import twice_differentiable
from pipeline.gram.regulator import Phi, regulate
from pipeline.prompts.base import Tokens

# tokens with a task dimension → (T,) loss of every task
TaskLoss = Callable[[Tokens], Tensor]


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """(T, n, K) logits and (T, n) labels → (T,) mean cross-entropy of every task."""
    return F.cross_entropy(logits.transpose(1, 2), labels, reduction="none").mean(dim=1)


@dataclass(frozen=True)
class InnerStep:
    """α, number of steps (0: none, θ itself is trained), order of differentiation, and the
    regulator's input scale.
    """

    lr: float
    steps: int = 1
    second_order: bool = True
    input_scale: str = "none"


def adapt(
    tokens: Tokens, phi: Phi, support_loss: TaskLoss, inner: InnerStep
) -> tuple[Tokens, Tokens]:
    """θ' = θ − α R^φ(∇θ L(θ, support)), repeated `steps` times (Eq 4–7).

    Args:
        tokens: {name: (T, rows, d)}, one copy per task. Tasks do not interact, so the gradient of
        the
            summed loss is every task's own gradient.

    Returns:
        The adapted tokens, and the raw gradient of the first step; both are differentiable with
        respect to θ and φ through every step if `second_order`, otherwise the gradient counts as a
        constant.
    """
    first: Tokens = {}
    with twice_differentiable() if inner.second_order else nullcontext():
        for _ in range(inner.steps):
            loss = support_loss(tokens).sum()
            gradients = torch.autograd.grad(
                loss, list(tokens.values()), create_graph=inner.second_order
            )
            raw = dict(zip(tokens, gradients, strict=True))
            step = regulate(phi, raw, inner.input_scale)
            tokens = {m: tokens[m] - inner.lr * step[m] for m in tokens}
            first = first or {m: g.detach() for m, g in raw.items()}
    return tokens, first


@dataclass(frozen=True)
class MetaGradient:
    """One meta-gradient and what there is to see on the way, all of it on the device.

    Attributes:
        theta, phi: gradients of the mean query loss over tasks (Eq 8–9).
        query_loss, query_accuracy: (T,) at θ'.
        raw: {name: (T, rows, d)} the support gradient at θ.
    """

    theta: Tokens
    phi: Phi
    query_loss: Tensor
    query_accuracy: Tensor
    raw: Tokens


def meta_gradient(
    theta: Tokens,
    phi: Phi,
    tasks: int,
    support_loss: TaskLoss,
    query_logits: Callable[[Tokens], Tensor],
    query_labels: Tensor,
    inner: InnerStep,
) -> MetaGradient:
    """∇θ and ∇φ of the mean over tasks of L(θ'_t, query_t), through θ' (Eq 8–10).

    Args:
        theta: {name: (rows, d)}; phi: see regulator.py. Both are leaves that require a gradient.
        query_logits: adapted tokens → (T, m, K); query_labels: (T, m).
    """
    copies = {m: v.unsqueeze(0).expand(tasks, *v.shape) for m, v in theta.items()}
    adapted, raw = adapt(copies, phi, support_loss, inner)
    logits = query_logits(adapted)
    losses = cross_entropy(logits, query_labels)
    wanted = [*theta.values(), *phi.values()]
    gradients = torch.autograd.grad(losses.mean(), wanted, allow_unused=True)
    found = [
        torch.zeros_like(w) if g is None else g for w, g in zip(wanted, gradients, strict=True)
    ]
    hits = (logits.argmax(dim=-1) == query_labels).float().mean(dim=1)
    return MetaGradient(
        dict(zip(theta, found[: len(theta)], strict=True)),
        dict(zip(phi, found[len(theta) :], strict=True)),
        losses.detach(),
        hits,
        raw,
    )


def _products(a: Tokens, b: Tokens) -> tuple[Tensor, Tensor]:
    """(T,) normalised inner product of two gradients, and the product itself, over all learned
    tokens together.
    """
    left, right = (torch.cat([g.flatten(1) for g in part.values()], dim=1) for part in (a, b))
    return F.cosine_similarity(left, right, dim=1), (left * right).sum(dim=1)


@dataclass(frozen=True)
class Agreement:
    """How support and query agree at θ: (T,) query loss there, the two normalised inner products
    of Fig 3b, and the products as they are: times α, what a step takes off the query loss in first
    order, which is what the paper's Taylor expansion speaks of.
    """

    start_loss: Tensor
    raw: Tensor  # ⟨∇support, ∇query⟩
    regulated: Tensor  # ⟨R^φ(∇support), ∇query⟩
    raw_inner: Tensor
    regulated_inner: Tensor


def agreement(
    theta: Tokens, phi: Phi, support_gradient: Tokens, query_loss: TaskLoss, input_scale: str
) -> Agreement:
    """Compares the support gradient at θ ({name: (T, rows, d)}) with the query's own gradient
    there.
    """
    tasks = next(iter(support_gradient.values())).shape[0]
    copies = {
        m: v.detach().unsqueeze(0).repeat(tasks, 1, 1).requires_grad_() for m, v in theta.items()
    }
    losses = query_loss(copies)
    query = dict(zip(copies, torch.autograd.grad(losses.sum(), list(copies.values())), strict=True))
    with torch.no_grad():
        raw, raw_inner = _products(support_gradient, query)
        regulated, regulated_inner = _products(regulate(phi, support_gradient, input_scale), query)
    return Agreement(losses.detach(), raw, regulated, raw_inner, regulated_inner)
