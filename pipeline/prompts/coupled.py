"""Coupled prompts (after MaPLe): text tokens in several blocks, and visual tokens that are
linear maps of them.
"""

from __future__ import annotations

from torch import Tensor

from pipeline.prompts.base import TextContext, Tokens, VisualTokens, linear, linear_rows


class Coupled(VisualTokens, TextContext):
    """Learns "text" (depth · M, d) and one coupling (depth · d', d + 1), weights and bias of a
    map per block.
    """

    def initial(self, count, generator, words=None) -> Tokens:
        text = self.initial_text(count, generator, words)
        return {
            "text": text,
            "coupling": linear_rows(
                self.depth * self.tower.width, text.shape[1], generator, text.device
            ),
        }

    def image_features(self, tokens: Tokens, seen: Tensor) -> Tensor:
        text = tokens["text"].unflatten(1, (self.depth, -1))  # (T, depth, M, d)
        maps = tokens["coupling"].unflatten(1, (self.depth, -1))  # (T, depth, d', d + 1)
        return self.seen_with(linear(text, maps).flatten(1, 2), seen)
