"""The gradient regulating function R^φ (Eq 5–6)."""

from __future__ import annotations

from typing import Any

import torch

from pipeline.gram.params import Regulator
from pipeline.prompts.base import Tokens

# φ by learned name: {"text.W_gamma": (d, d), "text.b_gamma": (1, d) or (rows, d), "text.W_beta",
# "text.b_beta"}. An empty φ is the identity: plain gradient descent.
Phi = dict[str, torch.Tensor]


def initial_phi(tokens: Tokens, settings: Regulator, generator: torch.Generator) -> Phi:
    """φ at its start: γ = tanh(W^γ g + bias), β = tanh(W^β g), W ~ N(0, weight_std²).

    With W = 0, γ is tanh(bias) everywhere and β is 0: R^φ starts close to the identity. W and bias
    must not both be zero: γ = tanh(0) = 0 would stop every inner step.
    """
    phi: Phi = {}
    for name, values in tokens.items():
        rows, d = values.shape
        make: dict[str, Any] = dict(dtype=values.dtype, device=values.device)
        biases = rows if settings.bias_per_token else 1
        for part, start in (("gamma", settings.bias), ("beta", 0.0)):
            weights = (
                torch.randn(d, d, generator=generator) * settings.weight_std
                if settings.weight_std
                else torch.zeros(d, d)
            )
            phi[f"{name}.W_{part}"] = weights.to(**make)
            phi[f"{name}.b_{part}"] = torch.full((biases, d), start, **make)
    return phi


def regulate(phi: Phi, gradients: Tokens, input_scale: str = "none") -> Tokens:
    """ĝ = γ ⊙ g + β with γ = tanh(W^γ g + b^γ), β = tanh(W^β g + b^β), one R^φ per modality.

    Args:
        phi: the regulator's parameters; {} returns the gradients as they are. gradients: {name: (T,
        rows, d)}; a token's gradient is a row here, a column of g in the paper. input_scale: "none"
        is Eq 5–6 to the letter. "rms" computes them on g / s and multiplies the
            result by s, where s is the root mean square of a task's gradient: a prompt's raw
            gradient is so small that tanh(W g + b) sees only b, and β, whose natural size is 1,
            drowns it.
    """
    return RULES["affine" if phi else "plain"](phi, gradients, input_scale)


def _affine(phi: Phi, gradients: Tokens, input_scale: str) -> Tokens:
    regulated = {}
    for name, g in gradients.items():
        s = (
            g.square().mean(dim=(-2, -1), keepdim=True).sqrt().clamp_min(1e-12)
            if input_scale == "rms"
            else 1.0
        )
        unit = g / s
        gamma = torch.tanh(unit @ phi[f"{name}.W_gamma"].T + phi[f"{name}.b_gamma"])
        beta = torch.tanh(unit @ phi[f"{name}.W_beta"].T + phi[f"{name}.b_beta"])
        regulated[name] = s * (gamma * unit + beta)
    return regulated


def _plain(phi: Phi, gradients: Tokens, input_scale: str) -> Tokens:
    return gradients


# A stage of a method without a regulator runs one entry alone, and is not stale for the other one
# (pipeline/code.py).
RULES = {"affine": _affine, "plain": _plain}
