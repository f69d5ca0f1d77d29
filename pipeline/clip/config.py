"""Reads and checks `open_clip_config.json`: what open_clip passes over or takes for something else
without a word is refused, with the key and what is known there.
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import open_clip
from open_clip.hf_model import _POOLERS
from open_clip.transform import PreprocessCfg
from pydantic import TypeAdapter, ValidationError

from pipeline.errors import InputError
from pipeline.params import did_you_mean

NAME = "open_clip_config.json"
SECTIONS = ("model_cfg", "preprocess_cfg")
TOWERS = {"vision_cfg": open_clip.CLIPVisionCfg, "text_cfg": open_clip.CLIPTextCfg}

_OF_CLIP = {*inspect.signature(open_clip.CLIP).parameters, "custom_text"} - {"cast_dtype"}
_OF_TOWER = {name: {field.name for field in fields(kind)} for name, kind in TOWERS.items()}
_OF_PREPROCESS = {field.name for field in fields(PreprocessCfg)}
_KEYS = {
    "model_cfg": _OF_CLIP,
    **{f"model_cfg.{name}": known for name, known in _OF_TOWER.items()},
    "preprocess_cfg": _OF_PREPROCESS,
}

# What a key may be. open_clip takes another word for one of these, or fails with the first picture.
_WORDS: dict[str, dict[str, tuple[Any, ...]]] = {
    "text_cfg": {
        "pool_type": ("first", "last", "argmax", "eos"),
        "proj_type": ("linear", "none"),
        "block_type": ("default", "custom"),
        "hf_proj_type": ("linear", "mlp"),
        "hf_pooler_type": tuple(_POOLERS),
    },
    "vision_cfg": {
        "pool_type": ("tok", "avg"),
        "pos_embed_type": ("learnable", "sin_cos_2d"),
        "block_type": ("default", "custom"),
        "attentional_pool": (True, False, "parallel", "cascade"),
        "timm_proj": ("linear", "mlp", "none", ""),
    },
    "preprocess_cfg": {
        "mode": ("RGB",),
        "interpolation": ("bicubic", "bilinear", "random"),
        "resize_mode": ("shortest", "longest", "squash"),
    },
}
_SIZES = (
    "attn_pooler_heads attn_pooler_queries context_length head_width heads image_size layers "
    "mlp_ratio patch_size vocab_size width"
).split()
# What open_clip means where preprocess_cfg says nothing.
_DEFAULTS = {name: getattr(PreprocessCfg(), name) for name in ("mean", "std")} | {
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}


@dataclass(frozen=True)
class Config:
    """A checked `open_clip_config.json`.

    Attributes:
        path: where it lies. model: `model_cfg`. preprocess: `preprocess_cfg` with open_clip's own
        mean, std, interpolation and resize mode where it says nothing.
    """

    path: Path
    model: dict[str, Any]
    preprocess: dict[str, Any]

    @property
    def text(self) -> dict[str, Any]:
        return self.model["text_cfg"]

    @property
    def vision(self) -> dict[str, Any]:
        return self.model["vision_cfg"]


def read_config(folder: Path | str) -> Config:
    """The config of a backbone's folder.

    Raises InputError naming file and key for one that is missing or unknown, and for a value that
    open_clip would take for another or fail at later.
    """
    path = Path(folder) / NAME
    config = _read(path)
    _section(path, config, "")
    _check_places(path, config)
    for name in SECTIONS:
        _section(path, config.get(name), name)
    model = config["model_cfg"]
    if "multimodal_cfg" in model:
        raise InputError(
            f"{path}: 'multimodal_cfg' makes it a CoCa model; only CLIP models with two "
            "towers are known"
        )
    _check_keys(path, model, "model_cfg")
    _check_size(path, "model_cfg.embed_dim", model.get("embed_dim"))
    for name in ("quick_gelu", "custom_text", "nonscalar_logit_scale"):
        if not isinstance(model.get(name) or False, bool):
            raise _wrong(path, f"model_cfg.{name}", model[name], "take true or false")
    for name in TOWERS:
        _section(path, model.get(name), f"model_cfg.{name}")
        _check_tower(path, model[name], name)
    return Config(path, model, _preprocess(path, config["preprocess_cfg"], model["vision_cfg"]))


def _read(path: Path) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        for place, (key, _) in enumerate(pairs):
            if key in dict(pairs[:place]):
                raise InputError(f"{path}: '{key}' stands twice in one place; take one out")
        return dict(pairs)

    try:
        return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=once)
    except FileNotFoundError:
        raise InputError(
            f"{path}: missing; a backbone is a folder in open_clip's layout, with its config and "
            "open_clip_model.safetensors"
        ) from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: not valid JSON ({error}); obtain it again") from None


def beside(config: Config, name: str, files: tuple[str, ...], key: str) -> Path:
    """Where one of a text tower's Hugging Face `files` is: in a folder of that name beside the
    config, or beside it directly.
    """
    folder = config.path.parent
    for place in (folder / Path(name).name, folder):
        if any((place / file).is_file() for file in files):
            return place
    raise InputError(
        f"{config.path}: '{key}' is '{name}', but neither {folder / Path(name).name} nor {folder} "
        f"holds its {' or '.join(files)}; put the Hugging Face model's config and tokenizer "
        "files there (nothing is downloaded)"
    )


def _wrong(path: Path, key: str, value: Any, remedy: str) -> InputError:
    return InputError(f"{path}: '{key}' is {json.dumps(value)[:60]}; {remedy}")


def _section(path: Path, value: Any, key: str) -> None:
    if not isinstance(value, dict):
        what = f"has no '{key}' with keys of its own" if key else "is no object"
        raise InputError(
            f"{path}: not a config of an open_clip CLIP: it {what}; it needs 'model_cfg' "
            "(with 'embed_dim', 'vision_cfg' and 'text_cfg') and 'preprocess_cfg'"
        )


def _homes(key: str) -> str:
    """Where a key belongs, in words; empty for one that is known nowhere."""
    return " or ".join(f"'{place}'" for place, known in _KEYS.items() if key in known)


def _check_places(path: Path, config: Mapping[str, Any]) -> None:
    """Other keys beside the sections are left to who wrote them, but not one that belongs into
    them, where it would be read.
    """
    for key in config:
        if key not in SECTIONS and (home := _homes(key)):
            raise InputError(
                f"{path}: '{key}' stands beside 'model_cfg', where nothing reads it; it belongs "
                f"into {home}"
            )


def _check_keys(path: Path, values: Mapping[str, Any], place: str) -> None:
    for key in values:
        if key not in _KEYS[place]:
            home = _homes(key)
            hint = f"; it belongs into {home}" if home else did_you_mean(key, _KEYS[place])
            raise InputError(f"{path}: unknown key '{place}.{key}'{hint}")


def _check_words(path: Path, values: Mapping[str, Any], section: str, place: str) -> None:
    for key, known in _WORDS[section].items():
        value = values.get(key)
        if value is not None and value not in known:
            listed = ", ".join(json.dumps(word) for word in known)
            raise _wrong(path, f"{place}.{key}", value, f"known are {listed}")


def _check_size(path: Path, key: str, value: Any) -> None:
    """Raises InputError for a size that is no positive number, or list of such."""
    for part in value if isinstance(value, list) and value else [value]:
        if type(part) not in (int, float) or not 0 < part < math.inf:
            raise _wrong(path, key, value, "take a number above 0")


def _check_tower(path: Path, values: dict[str, Any], name: str) -> None:
    place = f"model_cfg.{name}"
    _check_keys(path, values, place)
    _check_words(path, values, name, place)
    for key in _SIZES:
        if values.get(key) is not None:
            _check_size(path, f"{place}.{key}", values[key])
    for key in ("embed_cls", "output_tokens"):
        if values.get(key):
            raise _wrong(
                path,
                f"{place}.{key}",
                values[key],
                "that is of CoCa, whose towers are not known; take it out or choose another "
                "backbone",
            )
    said = {k: v for k, v in values.items() if v is not None and k != "attentional_pool"}
    try:
        TypeAdapter(TOWERS[name]).validate_json(json.dumps(said), strict=True)
    except ValidationError as error:
        problem = error.errors()[0]
        key = f"{place}.{problem['loc'][0]}"
        raise _wrong(path, key, problem["input"], problem["msg"].lower()) from None


def _pair(size: Any) -> list[Any]:
    listed = size if isinstance(size, list) else [size]
    return listed * 2 if len(listed) == 1 else listed


def _three(path: Path, key: str, value: Any, most: Iterable[float]) -> None:
    numbers = value if isinstance(value, (list, tuple)) else []
    if len(numbers) != 3 or not all(type(n) in (int, float) and math.isfinite(n) for n in numbers):
        raise _wrong(path, key, value, "take three numbers, of red, green and blue")
    low, high = most
    if not all(low <= n <= high for n in numbers):
        raise _wrong(
            path,
            key,
            value,
            "open_clip's are of pixels from 0 to 1 (0.5, not 127.5), and nothing is divided by 0",
        )


def _preprocess(path: Path, given: Mapping[str, Any], vision: Mapping[str, Any]) -> dict[str, Any]:
    """`preprocess_cfg` with open_clip's own values for what it does not say; without null."""
    _check_keys(path, given, "preprocess_cfg")
    _check_words(path, given, "preprocess_cfg", "preprocess_cfg")
    values = {k: v for k, v in given.items() if v is not None}
    values |= {k: v for k, v in _DEFAULTS.items() if k not in values}
    _three(path, "preprocess_cfg.mean", values["mean"], (0, 1))
    _three(path, "preprocess_cfg.std", values["std"], (1e-6, 1))
    fill = values.get("fill_color", 0)
    if type(fill) is not int or not 0 <= fill <= 255:
        raise _wrong(path, "preprocess_cfg.fill_color", fill, "take a whole number from 0 to 255")
    read = vision.get("image_size") or open_clip.CLIPVisionCfg.image_size
    if "size" in values and _pair(values["size"]) != _pair(read):
        raise _wrong(
            path,
            "preprocess_cfg.size",
            values["size"],
            f"but the vision tower reads 'model_cfg.vision_cfg.image_size', {read}; "
            "make them equal, or leave it out",
        )
    return values
