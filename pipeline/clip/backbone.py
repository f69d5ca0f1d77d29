"""Loads an open_clip model from a folder, and turns pictures and texts into features."""

from __future__ import annotations

import copy
import io
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import open_clip
import torch
from open_clip.tokenizer import HFTokenizer
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pipeline.ahead import ahead, each_ahead
from pipeline.artifacts import read_json
from pipeline.clip.text import TextTower, text_tower
from pipeline.clip.vision import VisionTower, vision_tower
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
from pipeline.upright import upright

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


# A buffer that older Hugging Face versions saved among the weights.
OUTDATED = {"text.transformer.embeddings.position_ids"}


def _check_weights(model: torch.nn.Module, weights: Path) -> None:
    expected = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    try:
        with safe_open(weights, "pt") as file:
            found = {k: tuple(file.get_slice(k).get_shape()) for k in file.keys()}
    except FileNotFoundError:
        raise InputError(
            f"{weights}: missing; put the backbone's weights there as safetensors, or change "
            "'backbone.path'"
        ) from None
    except SafetensorError as error:
        raise InputError(
            f"{weights}: not a complete safetensors file ({error}); obtain it again"
        ) from None
    for name, shape in expected.items():
        if name not in found:
            raise InputError(
                f"{weights}: has no tensor '{name}', which open_clip_config.json beside it calls "
                "for; config and weights must belong together"
            )
        if found[name] != shape:
            raise InputError(
                f"{weights}: tensor '{name}' is {found[name]}, but open_clip_config.json beside "
                f"it calls for {shape}; config and weights must belong together"
            )
    for name in found:
        if name not in expected and name not in OUTDATED:
            raise InputError(
                f"{weights}: tensor '{name}' has no place in the model of open_clip_config.json "
                "beside it; config and weights must belong together"
            )


def _build(config: dict[str, Any], folder: Path, config_path: Path):
    """The model of a config, with random weights. Towers of other libraries are built from files
    in `folder` only.
    """
    config = copy.deepcopy(config)
    if "multimodal_cfg" in config:
        raise InputError(
            f"{config_path}: 'multimodal_cfg' makes it a CoCa model; only CLIP models with two "
            "towers are known"
        )
    text, vision = config["text_cfg"], config["vision_cfg"]
    custom = config.pop("custom_text", False)
    if (text.get("hf_model_name") or text.get("hf_tokenizer_name")) and not find_spec(
        "transformers"
    ):
        raise InputError(
            f"{config_path}: reads text with Hugging Face's library, which is not here: "
            "pip install transformers"
        )
    if text.get("hf_model_name"):
        custom, text["hf_model_pretrained"] = True, False
        text["hf_model_name"] = str(
            _local(folder, text["hf_model_name"], ("config.json",), "hf_model_name", config_path)
        )
    if vision.get("timm_model_name"):
        vision["timm_model_pretrained"] = False
    kind = open_clip.CustomTextCLIP if custom else open_clip.CLIP
    return kind(**config)


def _local(folder: Path, name: str, files: tuple[str, ...], key: str, config_path: Path) -> Path:
    """Where one of a text tower's Hugging Face `files` is: in a folder of that name beside the
    config, or beside it directly.
    """
    for place in (folder / Path(name).name, folder):
        if any((place / file).is_file() for file in files):
            return place
    raise InputError(
        f"{config_path}: '{key}' is '{name}', but neither {folder / Path(name).name} nor {folder} "
        f"holds its {' or '.join(files)}; put the Hugging Face model's config and tokenizer "
        "files there (nothing is downloaded)"
    )


def _tokenizer(text: dict[str, Any], context: int, folder: Path, config_path: Path):
    if text.get("tokenizer_mode"):
        raise InputError(
            f"{config_path}: 'tokenizer_mode' is '{text['tokenizer_mode']}', which puts a token "
            "behind the padding; prompts for that kind are not implemented, choose another "
            "backbone"
        )
    key = "hf_tokenizer_name" if text.get("hf_tokenizer_name") else "hf_model_name"
    if text.get(key):
        place = _local(
            folder, text[key], ("tokenizer_config.json", "tokenizer.json"), key, config_path
        )
        return HFTokenizer(
            str(place),
            context_length=context,
            local_files_only=True,
            **(text.get("tokenizer_kwargs") or {}),
        )
    vocabulary = folder / "bpe.txt.gz"
    own = {"bpe_path": str(vocabulary)} if vocabulary.exists() else {}
    return open_clip.SimpleTokenizer(context_length=context, **own)


def _load_weights(model: Any, weights: Path) -> None:
    """Raises InputError naming the file if they do not fit, or are not all finite."""
    _check_weights(model, weights)
    with safe_open(weights, "pt") as file:
        tensors = {k: file.get_tensor(k).float() for k in model.state_dict()}
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise InputError(
                f"{weights}: tensor '{name}' holds numbers that are not finite; obtain it again"
            )
    model.load_state_dict(tensors)


def load_backbone(folder: Path | str) -> Backbone:
    """Loads the model of an open_clip folder; nothing is fetched from anywhere.

    The activation is the config's word alone: weights that were trained with QuickGELU (OpenAI's,
    MetaCLIP's, DFN's) look like any others, so `model_cfg` must say `"quick_gelu": true` for them.

    Raises InputError naming the file if the folder is incomplete or its weights do not fit its
    config.
    """
    folder = Path(folder)
    config_path, weights = folder / "open_clip_config.json", folder / "open_clip_model.safetensors"
    config = read_json(config_path)
    try:
        model = _build(config["model_cfg"], folder, config_path)
        preprocess = dict(config["preprocess_cfg"])
    except (KeyError, TypeError, ValueError, RuntimeError, AssertionError, OSError) as error:
        raise InputError(
            f"{config_path}: not a config of an open_clip CLIP ({error}); it needs 'model_cfg' "
            "and 'preprocess_cfg'"
        ) from None
    _load_weights(model, weights)
    where = device()
    # the order in memory in which convolutions are fastest: a CNN is nearly twice as fast, while a
    # transformer's only one, of the patches, gives the same numbers
    model.visual.to(memory_format=torch.channels_last)
    model = model.eval().requires_grad_(False).to(where)

    text = config["model_cfg"]["text_cfg"]
    tokenizer = _tokenizer(text, text.get("context_length", 77), folder, config_path)
    size = model.visual.image_size
    preprocess["size"] = size[0] if isinstance(size, (tuple, list)) and size[0] == size[1] else size
    view = open_clip.transform.image_transform_v2(
        open_clip.transform.PreprocessCfg(**preprocess), is_train=False
    )
    return Backbone(
        model,
        text_tower(model, tokenizer),
        vision_tower(model),
        tokenizer,
        view,
        preprocess,
        config["model_cfg"]["embed_dim"],
        where,
    )


def open_picture(content: bytes) -> Image.Image:
    """The picture in a file, upright, RGB with 8 bits; of an animated one, the first frame.

    Raises OSError, SyntaxError or ValueError for what cannot be read as such.
    """
    return _as_rgb(upright(Image.open(io.BytesIO(content))))


def _as_rgb(picture: Image.Image) -> Image.Image:
    """Pillow alone makes white of grey with 16 bits, and black or white of 32-bit numbers."""
    if picture.mode.startswith("I;16"):  # the upper 8 bits, as Pillow takes of 16-bit colours
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    elif picture.mode in ("I", "F"):
        raise ValueError(
            "its pixels are 32-bit numbers of no known range; save it with 8 or 16 bits"
        )
    return picture.convert("RGB")


def side_read(folder: Path | str) -> int:
    """The pixels of the shorter side of what a backbone's vision tower reads."""
    config = read_json(Path(folder) / "open_clip_config.json")
    size = config["model_cfg"]["vision_cfg"].get("image_size", 224)  # open_clip's own default
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
