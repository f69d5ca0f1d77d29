"""Vision towers as visual prompts need them: embedded patches, then tokens beside them through
the blocks.
"""

from __future__ import annotations

import torch
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from timm.models.vision_transformer import VisionTransformer as TimmTransformer
from torch import Tensor
from torch.nn import functional as F

from pipeline.clip.blocks import run_blocks
from pipeline.errors import InputError


class VisionTower:
    """What the prompt methods know of a vision tower that takes tokens.

    Attributes:
        width: d, size of a patch's embedding. layers: number of blocks.
    """

    width: int
    layers: int

    def embed(self, pixels: Tensor) -> Tensor:
        """(n, 3, h, w) normalised pixels → (n, P, d): class token and patches as they enter the
        first block.
        """
        raise NotImplementedError

    def enter(self, tokens: Tensor) -> Tensor:
        """Learned tokens (…, M, d) as they enter the first block: normalised like patches,
        without a position.
        """
        raise NotImplementedError

    def run(self, sequence: Tensor, patches: int, deep: Tensor | None) -> Tensor:
        """(n, P + M, d) → (n, e), not normalised; learned tokens stand behind the `patches` and
        are not pooled.
        """
        raise NotImplementedError

    def features(
        self, patches: Tensor, tokens: Tensor | None = None, deep: Tensor | None = None
    ) -> Tensor:
        """(n, e) L2-normalised features of (n, P, d) embedded pictures with (n, M, d) tokens beside
        the patches.

        Args:
            deep: (n, J, M, d) tokens that take the learned tokens' place after block 1, … J
            (VPT-deep).
        """
        sequence = patches if tokens is None else torch.cat([patches, self.enter(tokens)], dim=1)
        return F.normalize(self.run(sequence, patches.shape[1], deep), dim=-1)


class TransformerVision(VisionTower):
    """open_clip's own vision transformer."""

    def __init__(self, module: VisionTransformer) -> None:
        self.module = module
        self.width, self.layers = module.class_embedding.shape[0], len(module.transformer.resblocks)

    def embed(self, pixels):
        return self.module._embeds(pixels)

    def enter(self, tokens):
        return self.module.ln_pre(tokens)

    def run(self, sequence, patches, deep):
        m = self.module
        only_class = m.attn_pool is None and m.pool_type == "tok"
        at = (
            torch.zeros(sequence.shape[0], dtype=torch.long, device=sequence.device)
            if only_class
            else None
        )
        x = run_blocks(m.transformer.resblocks, sequence, at=at, deep=deep, deep_at=patches)
        pooled, _ = m._pool(x if only_class else x[:, :patches])
        return pooled if m.proj is None else pooled @ m.proj


class TimmVision(VisionTower):
    """A vision transformer of timm inside open_clip's adapter."""

    def __init__(self, module: TimmModel) -> None:
        self.module, self.trunk = module, module.trunk
        self.width, self.layers = module.trunk.embed_dim, len(module.trunk.blocks)

    def embed(self, pixels):
        return self.trunk.norm_pre(self.trunk._pos_embed(self.trunk.patch_embed(pixels)))

    def enter(self, tokens):
        return self.trunk.norm_pre(tokens)

    def run(self, sequence, patches, deep):
        x = run_blocks(self.trunk.blocks, sequence, deep=deep, deep_at=patches)[:, :patches]
        return self.module.head(self.trunk.forward_head(self.trunk.norm(x)))


def vision_tower(model) -> VisionTower | None:
    """The tower of a model, or None if its kind takes no tokens (a CNN)."""
    visual = model.visual
    if isinstance(visual, VisionTransformer):
        return TransformerVision(visual)
    if isinstance(visual, TimmModel) and type(visual.trunk) is TimmTransformer:
        return TimmVision(visual)
    return None


def require_tokens(tower: VisionTower | None, model) -> VisionTower:
    """`tower`, or InputError that says which kind of picture encoder cannot take visual prompts."""
    if tower is None:
        kind = type(getattr(model.visual, "trunk", model.visual)).__name__
        raise InputError(
            f"the backbone's vision tower is of the kind {kind}, where no learned tokens can "
            "stand beside the patches; visual prompts need the VisionTransformer of "
            "open_clip or timm, use a textual method"
        )
    return tower
