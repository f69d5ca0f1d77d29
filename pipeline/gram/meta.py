"""Algorithm 1's inner loop and meta-gradient, for a whole batch of tasks in one forward pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from pipeline.gram.regulator import Phi, regulate
from pipeline.prompts.base import Tokens

# tokens with a task dimension → (T,) loss of every task
TaskLoss = Callable[[Tokens], Tensor]


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """(T, n, K) logits and (T, n) labels → (T,) mean cross-entropy of every task."""
    return F.cross_entropy(logits.transpose(1, 2), labels, reduction="none").mean(dim=1)


@dataclass(frozen=True)
class InnerStep:
    """α, number of steps, order of differentiation, and the regulator's input scale."""

    lr: float
    steps: int = 1
    second_order: bool = True
    input_scale: str = "none"


def adapt(tokens: Tokens, phi: Phi, support_loss: TaskLoss, inner: InnerStep) -> tuple[Tokens, Tokens]:
    """θ' = θ − α R^φ(∇θ L(θ, support)), repeated `steps` times (Eq 4–7).

    Args:
        tokens: {modality: (T, M, d)}, one copy per task. Tasks do not interact, so the gradient of the
            summed loss is every task's own gradient.

    Returns:
        The adapted tokens, and the raw gradient of the last step; both are differentiable with respect
        to θ and φ through every step if `second_order`, otherwise the gradient counts as a constant.
    """
    raw: Tokens = {}
    for _ in range(inner.steps):
        loss = support_loss(tokens).sum()
        gradients = torch.autograd.grad(loss, list(tokens.values()), create_graph=inner.second_order)
        raw = dict(zip(tokens, gradients))
        step = regulate(phi, raw, inner.input_scale)
        tokens = {m: tokens[m] - inner.lr * step[m] for m in tokens}
    return tokens, raw


@dataclass(frozen=True)
class MetaStep:
    """One meta-gradient and what there is to see on the way.

    Attributes:
        theta, phi: gradients of the mean query loss over tasks (Eq 8–9).
        start_loss, query_loss: mean query loss at θ and at θ'.
        raw_rms: root mean square of the support gradient's entries.
    """

    theta: Tokens
    phi: Phi
    start_loss: float
    query_loss: float
    query_accuracy: float
    raw_rms: float


def meta_gradient(theta: Tokens, phi: Phi, tasks: int, support_loss: TaskLoss, query_logits: Callable[[Tokens], Tensor], query_labels: Tensor, inner: InnerStep) -> MetaStep:
    """∇θ and ∇φ of the mean over tasks of L(θ'_t, query_t), through θ' (Eq 8–10).

    Args:
        theta: {modality: (M, d)}; phi: see regulator.py. Both are leaves that require a gradient.
        query_logits: adapted tokens → (T, m, K); query_labels: (T, m).

    Attention runs on its plain mathematical form, the only one of torch's that can be differentiated twice.
    """
    with sdpa_kernel(SDPBackend.MATH):
        copies = {m: v.unsqueeze(0).expand(tasks, *v.shape) for m, v in theta.items()}
        adapted, raw = adapt(copies, phi, support_loss, inner)
        logits = query_logits(adapted)
        loss = cross_entropy(logits, query_labels).mean()
        wanted = [*theta.values(), *phi.values()]
        found = torch.autograd.grad(loss, wanted, allow_unused=True)
        with torch.no_grad():
            start = cross_entropy(query_logits({m: v.detach() for m, v in copies.items()}), query_labels).mean()
    found = [torch.zeros_like(w) if g is None else g for w, g in zip(wanted, found)]
    hits = (logits.argmax(dim=-1) == query_labels).float().mean()
    rms = torch.cat([g.detach().flatten() for g in raw.values()]).square().mean().sqrt()
    return MetaStep(dict(zip(theta, found[: len(theta)])), dict(zip(phi, found[len(theta) :])), start.item(), loss.item(), hits.item(), rms.item())
