"""Textual and visual tokens at once, half of them each; with GRAM this is the paper's UNIGRAM (§3.3)."""

from __future__ import annotations

import torch

from pipeline.errors import InputError
from pipeline.prompts.base import TextContext, Tokens, VisualTokens, random_rows, words_or_random


class Joint(VisualTokens, TextContext):
    def initial(self, count, generator, words=None) -> Tokens:
        if count % 2:
            raise InputError(f"a joint prompt divides its tokens between text and image, but there are {count}; make 'context_tokens' an even number")
        half = count // 2
        text = words_or_random(self.backbone, half, generator, words)
        deeper = random_rows((self.depth - 1) * half, text.shape[1], generator, text.device)
        image = random_rows(self.depth * half, self.tower.width, generator, text.device)
        return {"text": torch.cat([text, deeper]), "image": image}
