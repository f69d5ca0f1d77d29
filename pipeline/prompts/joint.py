"""Textual and visual tokens at once, half of them each; with GRAM this is the paper's UNIGRAM
(§3.3).
"""

from __future__ import annotations

from pipeline.errors import InputError
from pipeline.prompts.base import TextContext, Tokens, VisualTokens, random_rows


class Joint(VisualTokens, TextContext):
    def initial(self, count, generator, words=None) -> Tokens:
        if count % 2:
            raise InputError(
                "a joint prompt divides its tokens between text and image, but there are "
                f"{count}; make 'context_tokens' an even number"
            )
        half = count // 2
        text = self.initial_text(half, generator, words)
        image = random_rows(self.depth * half, self.tower.width, generator, text.device)
        return {"text": text, "image": image}
