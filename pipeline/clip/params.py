"""Parameters of the CLIP backbone (`backbone:` in params.yaml)."""

from __future__ import annotations

from pipeline.params import Section


class BackboneParams(Section):
    """A folder in open_clip's own layout: open_clip_config.json, open_clip_model.safetensors,
    maybe bpe.txt.gz.
    """

    path: str
