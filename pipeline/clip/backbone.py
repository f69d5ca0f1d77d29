"""Loads an open_clip model from a folder, and turns pictures and texts into features."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterable, Sequence

import open_clip
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn import functional as F

from pipeline.artifacts import read_json
from pipeline.clip.text import encode_tokens
from pipeline.errors import InputError


@dataclass(frozen=True)
class Backbone:
    """A frozen CLIP in evaluation mode with what belongs to it.

    Attributes:
        model: `open_clip.CLIP` on `device`; no parameter requires a gradient.
        tokenize: list of n texts → (n, context) token ids.
        test_view: PIL picture → (3, h, w) normalised tensor (resize, centre crop).
        preprocess: the `preprocess_cfg` of the folder's config.
    """

    model: Any
    tokenize: Callable[[Sequence[str]], Tensor]
    test_view: Callable[[Image.Image], Tensor]
    preprocess: dict[str, Any]
    device: torch.device

    @property
    def dim(self) -> int:
        """Size e of the joint feature space."""
        return self.model.text_projection.shape[-1]


def device() -> torch.device:
    """DEVICE from the environment, otherwise CUDA if there is one. It is no parameter: results are the same task."""
    return torch.device(os.environ.get("DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu"))


def _check_weights(model: torch.nn.Module, weights: Path) -> None:
    expected = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    try:
        with safe_open(weights, "pt") as file:
            found = {k: tuple(file.get_slice(k).get_shape()) for k in file.keys()}
    except FileNotFoundError:
        raise InputError(f"{weights}: missing; put the backbone's weights there as safetensors, or change 'backbone.path'") from None
    except SafetensorError as error:
        raise InputError(f"{weights}: not a complete safetensors file ({error}); obtain it again") from None
    for name, shape in expected.items():
        if name not in found:
            raise InputError(f"{weights}: has no tensor '{name}', which open_clip_config.json beside it calls for; config and weights must belong together")
        if found[name] != shape:
            raise InputError(f"{weights}: tensor '{name}' is {found[name]}, but open_clip_config.json beside it calls for {shape}; config and weights must belong together")
    for name in found:
        if name not in expected:
            raise InputError(f"{weights}: tensor '{name}' has no place in the model of open_clip_config.json beside it; config and weights must belong together")


def load_backbone(folder: Path | str) -> Backbone:
    """Loads the model of an open_clip folder; nothing is fetched from anywhere.

    Raises InputError naming the file if the folder is incomplete or its weights do not fit its config.
    """
    folder = Path(folder)
    config_path, weights = folder / "open_clip_config.json", folder / "open_clip_model.safetensors"
    config = read_json(config_path)
    try:
        model = open_clip.CLIP(**config["model_cfg"])
        preprocess = config["preprocess_cfg"]
    except (KeyError, TypeError) as error:
        raise InputError(f"{config_path}: not a config of an open_clip CLIP ({error}); it needs 'model_cfg' and 'preprocess_cfg'") from None
    _check_weights(model, weights)
    with safe_open(weights, "pt") as file:
        model.load_state_dict({k: file.get_tensor(k).float() for k in file.keys()})
    where = device()
    model = model.eval().requires_grad_(False).to(where)

    context = config["model_cfg"]["text_cfg"].get("context_length", 77)
    vocabulary = folder / "bpe.txt.gz"
    own = {"bpe_path": str(vocabulary)} if vocabulary.exists() else {}
    tokenizer = open_clip.SimpleTokenizer(context_length=context, **own)
    size = config["model_cfg"]["vision_cfg"]["image_size"]
    view = open_clip.transform.image_transform_v2(open_clip.transform.PreprocessCfg(size=size, **preprocess), is_train=False)
    return Backbone(model, tokenizer, view, {"size": size, **preprocess}, where)


def open_picture(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content)).convert("RGB")


@torch.inference_mode()
def image_features(backbone: Backbone, views: Iterable[Tensor], batch: int = 256) -> Tensor:
    """(3, h, w) views → (n, e) L2-normalised image features on the CPU."""
    done, waiting = [], []

    def flush() -> None:
        if waiting:
            done.append(backbone.model.encode_image(torch.stack(waiting).to(backbone.device), normalize=True).float().cpu())
            waiting.clear()

    for view in views:
        waiting.append(view)
        if len(waiting) == batch:
            flush()
    flush()
    return torch.cat(done) if done else torch.zeros(0, backbone.dim)


@torch.inference_mode()
def text_features(backbone: Backbone, texts: Sequence[str], batch: int = 256) -> Tensor:
    """n texts → (n, e) L2-normalised text features on the CPU."""
    done = [encode_tokens(backbone.model, backbone.tokenize(texts[i : i + batch]).to(backbone.device)).float().cpu() for i in range(0, len(texts), batch)]
    return F.normalize(torch.cat(done), dim=-1) if done else torch.zeros(0, backbone.dim)
