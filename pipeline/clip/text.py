"""The text tower from token embeddings on, differentiable twice and no longer than it needs to be."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def encode_embeddings(model, embeddings: Tensor, end: Tensor) -> Tensor:
    """Runs open_clip's text tower on token embeddings instead of token ids.

    Args:
        model: an `open_clip.CLIP` with its own text transformer.
        embeddings: (n, length, d) token embeddings, start token first; no longer than the context.
        end: (n,) position of each row's end-of-text token.

    Returns:
        (n, e) L2-normalised text features.

    Positions after the end token cannot influence it under the causal mask, so callers cut `length`
    at the longest row's end token; the result is exact, not an approximation.
    """
    length = embeddings.shape[1]
    x = embeddings + model.positional_embedding[:length]
    x = model.transformer(x, attn_mask=model.attn_mask[:length, :length])
    x = model.ln_final(x[torch.arange(len(x), device=x.device), end])
    if isinstance(model.text_projection, torch.nn.Linear):
        x = model.text_projection(x)
    elif model.text_projection is not None:
        x = x @ model.text_projection
    return F.normalize(x, dim=-1)


def encode_tokens(model, tokens: Tensor) -> Tensor:
    """(n, context) token ids → (n, e) L2-normalised features; the same as `model.encode_text`, cut short."""
    end = tokens.argmax(dim=-1)
    length = int(end.max()) + 1
    return encode_embeddings(model, model.token_embedding(tokens[:, :length]), end)
