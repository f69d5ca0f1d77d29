"""The gradient regulating function R^φ (Eq 5–6)."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.gram.params import Regulator
from pipeline.prompts.base import Tokens

# φ by modality and name: {"text.W_gamma": (d, d), "text.b_gamma": (d,), "text.W_beta": (d, d), "text.b_beta": (d,)}.
# An empty φ is the identity: plain gradient descent.
Phi = dict[str, Tensor]


def initial_phi(tokens: Tokens, settings: Regulator) -> Phi:
    """φ that starts close to the identity: γ = tanh(bias) everywhere, β = 0.

    The weights may start at zero because the bias of γ does not: with both at zero, γ = tanh(0) = 0
    would stop every inner step.
    """
    phi: Phi = {}
    for modality, values in tokens.items():
        d = values.shape[-1]
        make = dict(dtype=values.dtype, device=values.device)
        phi[f"{modality}.W_gamma"] = torch.zeros(d, d, **make)
        phi[f"{modality}.b_gamma"] = torch.full((d,), settings.bias, **make)
        phi[f"{modality}.W_beta"] = torch.zeros(d, d, **make)
        phi[f"{modality}.b_beta"] = torch.zeros(d, **make)
    return phi


def regulate(phi: Phi, gradients: Tokens, input_scale: str = "none") -> Tokens:
    """ĝ = γ ⊙ g + β with γ = tanh(W^γ g + b^γ), β = tanh(W^β g + b^β), one R^φ per modality.

    Args:
        phi: the regulator's parameters; {} returns the gradients as they are.
        gradients: {modality: (T, M, d)}; a token's gradient is a row here, a column of g in the paper.
        input_scale: "none" is Eq 5–6 to the letter. "rms" computes them on g / s and multiplies the
            result by s, where s is the root mean square of a task's gradient: a prompt's raw gradient
            is so small that tanh(W g + b) sees only b, and β, whose natural size is 1, drowns it.
    """
    if not phi:
        return gradients
    regulated = {}
    for modality, g in gradients.items():
        s = g.square().mean(dim=(-2, -1), keepdim=True).sqrt().clamp_min(1e-12) if input_scale == "rms" else 1.0
        unit = g / s
        gamma = torch.tanh(unit @ phi[f"{modality}.W_gamma"].T + phi[f"{modality}.b_gamma"])
        beta = torch.tanh(unit @ phi[f"{modality}.W_beta"].T + phi[f"{modality}.b_beta"])
        regulated[modality] = s * (gamma * unit + beta)
    return regulated
