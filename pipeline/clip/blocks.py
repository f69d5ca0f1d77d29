"""Transformer blocks as the prompt methods need them: differentiable twice, and only where a result
is wanted.

open_clip's own block goes through `nn.MultiheadAttention`, which under second-order gradients falls
into batched products with expanded weights; written out on flat rows it is 1.5 times as fast and
equal to float tolerance (tests/test_towers.py). Other kinds of block (timm's, Hugging Face's) run
as they are.
"""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from contextvars import ContextVar

import torch
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

_TWICE: ContextVar[bool] = ContextVar("twice", default=False)
_RECOMPUTE: ContextVar[bool] = ContextVar("recompute", default=False)


@contextmanager
def twice_differentiable():
    """Within it, attention takes its plain mathematical form, the only one that can be
    differentiated twice.
    """
    token = _TWICE.set(True)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        _TWICE.reset(token)


@contextmanager
def recomputed_activations(enabled: bool = True):
    """Within it, blocks keep their inputs only and run again in the backward pass: less memory,
    more time.
    """
    token = _RECOMPUTE.set(enabled)
    try:
        yield
    finally:
        _RECOMPUTE.reset(token)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(q kᵀ / √c + mask) v for (n, heads, length, c); mask is additive and broadcasts to
    (n, heads, q, k).
    """
    if not _TWICE.get():
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    n, heads, queries, c = q.shape
    flat = [t.reshape(n * heads, -1, c) for t in (q, k, v)]
    scores = torch.bmm(flat[0] * c**-0.5, flat[1].transpose(1, 2)).view(n, heads, queries, -1)
    if mask is not None:
        scores = scores + mask
    return torch.bmm(scores.softmax(dim=-1).flatten(0, 1), flat[2]).view(n, heads, queries, c)


def _residual_attention(
    block: ResidualAttentionBlock, x: Tensor, mask: Tensor | None, at: Tensor | None
) -> Tensor:
    n, length, d = x.shape
    heads = block.attn.num_heads
    weight, bias = block.attn.in_proj_weight, block.attn.in_proj_bias
    x = x.reshape(n * length, d)
    y = block.ln_1(x)
    if at is None:
        q, k, v = (
            F.linear(y, weight, bias).view(n, length, 3, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        )
    else:  # keys and values of all positions, the rest of the block at one position of each row
        wanted = torch.arange(n, device=x.device) * length + at
        k, v = (
            F.linear(y, weight[d:], bias[d:])
            .view(n, length, 2, heads, -1)
            .permute(2, 0, 3, 1, 4)
            .unbind(0)
        )
        q = F.linear(y[wanted], weight[:d], bias[:d]).view(n, 1, heads, -1).transpose(1, 2)
        x = x[wanted]
        mask = None if mask is None else mask[at].view(n, 1, 1, length)
    mixed = attend(q, k, v, mask).transpose(1, 2).reshape(x.shape[0], d)
    x = x + block.ls_1(F.linear(mixed, block.attn.out_proj.weight, block.attn.out_proj.bias))
    x = x + block.ls_2(block.mlp(block.ln_2(x)))
    return x.view(n, -1, d)


def _block(block: nn.Module, x: Tensor, mask: Tensor | None, at: Tensor | None) -> Tensor:
    if type(block) is ResidualAttentionBlock:
        return _residual_attention(block, x, mask, at)
    x = block(x) if mask is None else block(x, attn_mask=mask)
    return x if at is None else x[torch.arange(x.shape[0], device=x.device), at].unsqueeze(1)


def _in_form(twice: bool, recompute: bool, function, *arguments) -> Tensor:
    """`function` in the form it had at first: the backward pass runs it again, on a device in a
    thread that knows none of our contexts.
    """
    with twice_differentiable() if twice else nullcontext(), recomputed_activations(recompute):
        return function(*arguments)


def _again_backwards(function, *arguments) -> Tensor:
    """`function`, of which only the arguments are kept: it runs again in the backward pass."""
    form = _TWICE.get(), _RECOMPUTE.get(), function
    return checkpoint(_in_form, *form, *arguments, use_reentrant=False, preserve_rng_state=False)


def in_parts(function, at_once: int, first: Tensor, *others: Tensor | None, dim: int = 0) -> Tensor:
    """`function` of tensors of equal size along `dim`, applied to `at_once` at a time, and the
    results put together.

    Where a gradient is wanted each part runs again in the backward pass, so that there is memory
    for one part only; the gradient is the exact one.
    """
    if first.shape[dim] <= at_once:
        return function(first, *others)
    count = -(-first.shape[dim] // at_once)
    parts = zip(
        *([None] * count if t is None else t.split(at_once, dim) for t in (first, *others)),
        strict=True,
    )
    run = _again_backwards if torch.is_grad_enabled() else lambda f, *arguments: f(*arguments)
    return torch.cat([run(function, *part) for part in parts], dim=dim)


def run_blocks(
    blocks,
    x: Tensor,
    mask: Tensor | None = None,
    at: Tensor | None = None,
    deep: Tensor | None = None,
    deep_at: int = 0,
) -> Tensor:
    """Runs a tower's blocks one after another.

    Args:
        x: (n, length, d). mask: (length, length), additive, or None. at: (n,) the one position of
        each row whose result is wanted: the last block then computes no other. deep: (n, J, M, d)
        tokens that take the place of positions deep_at … deep_at + M after block 1, 2, … J.

    Returns:
        (n, length, d), or (n, 1, d) with `at`.
    """
    for index, block in enumerate(blocks):
        if deep is not None and 0 < index <= deep.shape[1]:
            tokens = deep[:, index - 1]
            x = torch.cat([x[:, :deep_at], tokens, x[:, deep_at + tokens.shape[1] :]], dim=1)
        wanted = at if index == len(blocks) - 1 else None
        if _RECOMPUTE.get() and torch.is_grad_enabled():
            x = _again_backwards(_block, block, x, mask, wanted)
        else:
            x = _block(block, x, mask, wanted)
    return x
