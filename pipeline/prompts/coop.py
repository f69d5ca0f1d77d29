"""CoOp: learned context tokens before the class name (Eq 2)."""

from __future__ import annotations

from pipeline.prompts.base import TextContext, Tokens


class CoOp(TextContext):
    def initial(self, count, generator, words=None) -> Tokens:
        return {"text": self.initial_text(count, generator, words)}
