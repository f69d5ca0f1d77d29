"""CoOp: learned context tokens before the class name (Eq 2)."""

from __future__ import annotations

import torch

from pipeline.prompts.base import TextContext, Tokens, random_rows, words_or_random


class CoOp(TextContext):
    def initial(self, count, generator, words=None) -> Tokens:
        text = words_or_random(self.backbone, count, generator, words)
        deeper = random_rows((self.depth - 1) * count, text.shape[1], generator, text.device)
        return {"text": torch.cat([text, deeper])}
