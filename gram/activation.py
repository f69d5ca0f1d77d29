"""Tells a person whose backbone computes with another activation than it was trained with."""

from __future__ import annotations

from pathlib import Path

from gram.collection import Collection
from pipeline.clip.activation import compare_activations
from pipeline.clip.backbone import Backbone
from pipeline.prompts.base import in_words


def activation_note(
    backbone: Backbone, place: Path, found: Collection, template: str
) -> str | None:
    """What `compare_activations` says of labelled pictures, with the backbone's folder before."""
    words = compare_activations(
        backbone, found.picture, found.labels, lambda name: in_words(name, template)
    )
    return words and f"backbone {place}: {words}"
