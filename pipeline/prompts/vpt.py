"""VPT: learned tokens beside the picture's patches; the text side is the hand-written template."""

from __future__ import annotations

from pipeline.prompts.base import FixedText, Tokens, VisualTokens, random_rows


class VPT(VisualTokens, FixedText):
    def initial(self, count, generator, words=None) -> Tokens:
        return {
            "image": random_rows(
                self.depth * count, self.tower.width, generator, self.backbone.device
            )
        }
