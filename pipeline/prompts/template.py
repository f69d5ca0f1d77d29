"""The hand-written prompt: zero-shot CLIP. It learns nothing."""

from __future__ import annotations

from pipeline.prompts.base import FixedText, Tokens


class Template(FixedText):
    def initial(self, count, generator, words=None) -> Tokens:
        return {}
