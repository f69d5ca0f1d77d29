"""Coupled prompts (after MaPLe): text tokens in several blocks, and visual tokens that are linear maps of them."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.prompts.base import TextContext, Tokens, VisualTokens, random_rows, words_or_random


class Coupled(VisualTokens, TextContext):
    """Learns "text" (depth · M, d) and one coupling (depth · d', d + 1), weights and bias of a map per block."""

    def initial(self, count, generator, words=None) -> Tokens:
        text = words_or_random(self.backbone, count, generator, words)
        d, wide, device = text.shape[1], self.tower.width, text.device
        deeper = random_rows((self.depth - 1) * count, d, generator, device)
        maps = (torch.rand(self.depth * wide, d + 1, generator=generator) * 2 - 1) * d**-0.5
        return {"text": torch.cat([text, deeper]), "coupling": maps.to(device)}

    def image_features(self, tokens: Tokens, seen: Tensor) -> Tensor:
        text = tokens["text"].unflatten(1, (self.depth, -1))  # (T, depth, M, d)
        maps = tokens["coupling"].unflatten(1, (self.depth, -1))  # (T, depth, d', d + 1)
        image = text @ maps[..., :-1].transpose(-1, -2) + maps[..., -1].unsqueeze(-2)
        return self.seen_with(image.flatten(1, 2), seen)
