"""Loads an open_clip model from a folder, and turns pictures and texts into features."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import open_clip
import torch
from PIL import Image
from torch import Tensor

from pipeline.ahead import ahead, each_ahead
from pipeline.clip.centre import make_test_view
from pipeline.clip.config import Config, beside, read_config
from pipeline.clip.text import TextTower, text_tower
from pipeline.clip.tokens import require_transformers, tokenizer
from pipeline.clip.vision import VisionTower, vision_tower
from pipeline.clip.weights import load_weights
from pipeline.device import (
    FEWER_PICTURES,
    at_once,
    decoders,
    device,
    pictures_at_once,
    sent,
    waiting,
    within_memory,
)
from pipeline.errors import InputError
from pipeline.image_file import open_picture as open_picture  # for all who view pictures

Item = TypeVar("Item")
VIEWS_AHEAD = 64  # that wait for their batch: enough for any number of threads to be busy


@dataclass(frozen=True)
class Backbone:
    """A frozen CLIP in evaluation mode with what belongs to it.

    Attributes:
        model: `open_clip.CLIP` or `CustomTextCLIP` on `device`; no parameter requires a gradient.
        text: its text tower. vision: its vision tower, None if that kind takes no tokens.
        tokenize: list of n texts → (n, context) token ids.
        test_view: PIL picture → (3, h, w) normalised tensor (resize, centre crop).
        preprocess: the `preprocess_cfg` of the folder's config.
        dim: size e of the joint feature space.
    """

    model: Any
    text: TextTower
    vision: VisionTower | None
    tokenize: Callable[[Sequence[str]], Tensor]
    test_view: Callable[[Image.Image], Tensor]
    preprocess: dict[str, Any]
    dim: int
    device: torch.device

    @property
    def logit_scale(self) -> Tensor:
        """1/τ of Eq 1."""
        return self.model.logit_scale.exp()


def _build(config: Config) -> Any:
    """The model of a config, with random weights. Towers of other libraries are built from files
    beside it only.
    """
    require_transformers(config)
    values = copy.deepcopy(config.model)
    text, vision = values["text_cfg"], values["vision_cfg"]
    custom = values.pop("custom_text", False)
    if text.get("hf_model_name"):
        custom, text["hf_model_pretrained"] = True, False
        text["hf_model_name"] = str(
            beside(config, text["hf_model_name"], ("config.json",), "hf_model_name")
        )
    if vision.get("timm_model_name"):
        vision["timm_model_pretrained"] = False
    kind = open_clip.CustomTextCLIP if custom else open_clip.CLIP
    try:
        model = kind(**values)
    except Exception as error:  # open_clip's, timm's and Hugging Face's are many kinds
        raise InputError(
            f"{config.path}: not a config of an open_clip CLIP ({type(error).__name__}: {error})"
        ) from None
    _check_side(config, getattr(model.visual, "trunk", None))
    return model


def _check_side(config: Config, trunk: Any) -> None:
    """Raises InputError if a timm tower takes pictures of one size alone, and not of the config's:
    open_clip does not tell it the config's.
    """
    size, patches = config.vision.get("image_size", 224), getattr(trunk, "patch_embed", None)
    asked = tuple(size) if isinstance(size, list) else (size, size)
    taken = getattr(patches, "img_size", None) if getattr(patches, "strict_img_size", 0) else None
    if taken not in (None, asked):
        raise InputError(
            f"{config.path}: 'model_cfg.vision_cfg.image_size' is {size}, but timm's "
            f"'{config.vision['timm_model_name']}' takes {taken[0]} × {taken[1]} pixels"
        )


def load_backbone(folder: Path | str) -> Backbone:
    """Loads the model of an open_clip folder; nothing is fetched from anywhere.

    The activation is the config's word alone: weights that were trained with QuickGELU (OpenAI's,
    MetaCLIP's, DFN's) look like any others, so `model_cfg` must say `"quick_gelu": true` for them
    (`compare_activations` asks labelled pictures).

    Raises InputError naming the file if the folder is incomplete or its weights do not fit its
    config.
    """
    config = read_config(folder)
    model = _build(config)
    load_weights(model, config.path.parent)
    where = device()
    # the order in memory in which convolutions are fastest: a CNN is nearly twice as fast, while a
    # transformer's only one, of the patches, gives the same numbers
    model.visual.to(memory_format=torch.channels_last)
    model = model.eval().requires_grad_(False).to(where)

    preprocess, size = config.preprocess, model.visual.image_size
    preprocess["size"] = size[0] if isinstance(size, (tuple, list)) and size[0] == size[1] else size
    view = make_test_view(open_clip.transform.PreprocessCfg(**preprocess))
    tokenize = tokenizer(config)
    try:
        text = text_tower(model, tokenize)
    except InputError as error:
        raise InputError(f"{config.path}: {error}") from None
    vision, dim = vision_tower(model), config.model["embed_dim"]
    return Backbone(model, text, vision, tokenize, view, preprocess, dim, where)


def side_read(folder: Path | str) -> int:
    """The pixels of the shorter side of what a backbone's vision tower reads."""
    size = read_config(folder).vision.get("image_size") or open_clip.CLIPVisionCfg.image_size
    return min(size) if isinstance(size, list) else size


def viewed(
    backbone: Backbone, opened: Callable[[Item], Image.Image], items: Iterable[Item]
) -> Iterator[Tensor]:
    """(3, h, w) test view of the picture that is `opened` of every item, in order; made by
    `decoders`.
    """
    view = lambda item: backbone.test_view(opened(item))
    with decoders() as threads:
        yield from each_ahead(view, items, threads, VIEWS_AHEAD)


def _batches(views: Iterable[Tensor], size: int, where: torch.device) -> Iterator[Tensor]:
    """(size, 3, h, w), the last one smaller, where the device can fetch them."""
    views = iter(views)
    while batch := list(itertools.islice(views, size)):
        yield waiting(torch.stack(batch), where)


@torch.inference_mode()
def image_features(backbone: Backbone, views: Iterable[Tensor], most: int = 256) -> Tensor:
    """(3, h, w) views → (n, e) L2-normalised image features on the CPU.

    Views are made in a thread, a batch ahead of the one that is encoded: `most` of them at once, or
    fewer where that suits the device and their size.
    """
    views, done = iter(views), []
    if (first := next(views, None)) is None:
        return torch.zeros(0, backbone.dim)
    size = pictures_at_once(first, backbone.device, most)
    with within_memory(FEWER_PICTURES.format(size)):
        for pixels in ahead(_batches(itertools.chain([first], views), size, backbone.device), 1):
            seen = sent(pixels, backbone.device)
            done.append(backbone.model.encode_image(seen, normalize=True).float().cpu())
    return torch.cat(done)


@torch.inference_mode()
def text_features(backbone: Backbone, texts: Sequence[str], batch: int = 256) -> Tensor:
    """n texts → (n, e) L2-normalised text features on the CPU."""
    tower, batch = backbone.text, at_once(batch)
    with within_memory(FEWER_PICTURES.format(batch)):
        done = [
            tower.features(tower.split(texts[i : i + batch])).float().cpu()
            for i in range(0, len(texts), batch)
        ]
    return torch.cat(done) if done else torch.zeros(0, backbone.dim)
