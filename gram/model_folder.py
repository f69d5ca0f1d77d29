"""The folder that a classifier is kept in; there is no pickle in it."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import secrets
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from gram.collection import Collection, label_name, reader_of
from gram.inputs import loaded
from gram.trust import chances
from pipeline.clip.backbone import Backbone
from pipeline.clip.digest import backbone_digest
from pipeline.errors import InputError

if TYPE_CHECKING:
    from gram.estimator import PromptClassifier

FORMAT, VERSION = "gram-classifier", 1
WEIGHTS, CONFIG = "model.safetensors", "config.json"
TOKENS, HELD_OUT = "tokens/", "held_out_logits"
# What a folder may hold whose config.json does not list its files yet.
OF_VERSION_1 = (WEIGHTS, "heldout.csv", "report.html", "README.md")
AGAIN = "adapt again, or take the whole folder from where it came"
# What loading needs of config.json.
KEYS: dict[str, type | tuple[type, ...]] = {
    "weights_sha256": str,
    "backbone.name": str,
    "backbone.path": str,
    "backbone.sha256": str,
    "method": str,
    "title": str,
    "prompt": (dict, type(None)),
    "sentence": str,
    "classes": list,
    "template": str,
    "trust": (int, float),
    "temperature": (int, float),
    "start": (str, type(None)),
    "folds": int,
    "seed": int,
    "comparison": list,
    "data.source": str,
    "data.files": list,
    "data.labels": list,
    "data.sha256": list,
    "data.notes": list,
}
PARTS = ("backbone", "data")
MISSING = object()
LIBRARIES = ("gram-pipeline", "torch", "open_clip_torch", "scikit-learn", "pillow", "numpy")


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _tensors(model: PromptClassifier) -> dict[str, torch.Tensor]:
    found = {"features": model.features_}
    if model.matrix_ is not None:
        found["matrix"] = model.matrix_
    found |= {f"{TOKENS}{name}": rows for name, rows in model.tokens_.items()}
    if model.scores_ is not None:
        found["scores"] = torch.from_numpy(model.scores_)
    if model.held_out_logits_ is not None:
        found[HELD_OUT] = torch.from_numpy(model.held_out_logits_)
    return {name: tensor.contiguous().clone() for name, tensor in found.items()}


def _config(model: PromptClassifier, weights: bytes) -> dict[str, Any]:
    pictures = model.collection_
    return {
        "format": FORMAT,
        "version": VERSION,
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "backbone": {
            "name": str(model.backbone),
            "path": str(model.place_.resolve()),
            "sha256": model.digest_,
        },
        "method": model.method_,
        "title": model.title_,
        "prompt": model.prompt_,
        "sentence": model.sentence_,
        "classes": model.classes_.tolist(),
        "template": model.template_,
        "trust": model.trust_,
        "temperature": model.temperature_,
        "preprocessing": model.backbone_.preprocess,
        "start": None if model.start is None else str(model.start),
        "folds": model.folds_,
        "seed": model.seed,
        "comparison": model.comparison_,
        "data": {
            "source": str(Path(pictures.source).resolve())
            if Path(pictures.source).exists()
            else pictures.source,
            "pictures": len(pictures.files),
            "fingerprint": pictures.fingerprint,
            "files": pictures.files,
            "labels": np.array(pictures.labels).tolist(),
            "sha256": pictures.digests,
            "notes": pictures.notes,
        },
        "versions": {"python": platform.python_version()}
        | {library: _version(library) for library in LIBRARIES},
    }


def held_out_table(model: PromptClassifier) -> pl.DataFrame:
    """path, label, predicted, right, probability of the prediction and of the truth, for every
    picture while its fold was held out.
    """
    chances = model.judged
    rows, guessed = np.arange(len(chances)), chances.argmax(axis=1)
    return pl.DataFrame(
        {
            "path": model.collection_.files,
            "label": [model.names_[k] for k in model.targets_],
            "predicted": [model.names_[k] for k in guessed],
            "right": guessed == model.targets_,
            "probability": chances[rows, guessed],
            "probability_of_label": chances[rows, model.targets_],
        }
    )


def _digest_of(config: dict[str, Any]) -> str:
    """SHA-256 of what config.json says beside the list of files."""
    said = {key: value for key, value in config.items() if key != "files"}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _refused(folder: Path, why: str) -> InputError:
    return InputError(f"{folder}: {why}; choose another name for the model folder")


def _foreign(folder: Path) -> str | None:
    """Why a folder is not replaced: it holds what `gram adapt` did not write; None if it may be."""
    there = sorted(path.name for path in folder.iterdir())
    if not there:
        return None
    try:
        config = read_config(folder)
    except InputError:
        return "is there already, and is no classifier"
    written = config.get("files")
    if not isinstance(written, dict):
        return "holds a classifier of an earlier version, which did not note its files"
    for name in there:
        path = folder / name
        if name not in written or path.is_symlink() or not path.is_file():
            return f"holds '{name}', which `gram adapt` did not write"
        content = path.read_bytes()
        found = _digest_of(config) if name == CONFIG else hashlib.sha256(content).hexdigest()
        if found != written[name]:
            return f"holds '{name}', which was changed since `gram adapt` wrote it"
    return None


def check_target(folder: Path, source: Path | str | None = None) -> None:
    """Checks that a model folder can be written at `folder`, and that nothing is lost by it.

    Args:
        source: what the pictures are read from, if that is a folder.

    Raises InputError for a place that cannot be written, for a folder that holds anything but a
    classifier's own unchanged files, and for one inside the pictures' folder.
    """
    place = folder.resolve()
    if place == Path.cwd() or place in Path.cwd().parents or os.path.ismount(place):
        raise _refused(folder, "is the folder that you are in, or holds it")
    above = next(path for path in place.parents if path.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        why = "nothing can be written there" if above.is_dir() else "is a file"
        raise InputError(f"{folder}: {above} {why}; choose another place for the classifier")
    if place.exists() and not place.is_dir():
        raise _refused(folder, "is there already, and is no classifier")
    if source is not None and Path(source).resolve() in (place, *place.parents):
        raise _refused(folder, "lies in the folder of the pictures, and would be read as a class")
    if place.is_dir() and (lost := _foreign(place)):
        raise _refused(folder, lost)


def _put_in_place(work: Path, folder: Path) -> None:
    """Moves the new model folder where the old one is. The old one goes when the new one is there,
    and comes back if that fails.
    """
    if not folder.exists():
        os.replace(work, folder)
        return
    before = work.with_suffix(".old")
    os.replace(folder, before)
    try:
        os.replace(work, folder)
    except BaseException:
        os.replace(before, folder)
        raise
    shutil.rmtree(before)


def save_model(model: PromptClassifier, folder: Path) -> None:
    """Writes all files beside `folder` and puts them in its place at once. A classifier that was
    loaded is copied from where it lies.
    """
    check_target(folder)
    if model.names_ != model.collection_.names:
        raise InputError(
            "a classifier with other names than it was adapted to is not saved; save it before, "
            "and give the names when it is used"
        )
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = folder.with_name(f".{folder.name[:200]}.{secrets.token_hex(8)}.tmp")
    work.mkdir()
    try:
        if model.origin_ is not None:  # what was measured is in its files alone
            config = read_config(model.origin_)
            for name in {*config.get("files", OF_VERSION_1), CONFIG}:
                if Path(name).name == name and (model.origin_ / name).is_file():
                    shutil.copyfile(model.origin_ / name, work / name)
        else:
            _write(model, work)
        check_target(folder)  # of what came while it was learned
        _put_in_place(work, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _write(model: PromptClassifier, work: Path) -> None:
    from gram.report import write_card, write_report

    weights = save(_tensors(model))
    (work / WEIGHTS).write_bytes(weights)
    if model.held_out_ is not None:
        held_out_table(model).write_csv(work / "heldout.csv", float_precision=6)
    write_report(model, work / "report.html")
    write_card(model, work / "README.md")
    digests = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(work.iterdir())
    }
    config = _config(model, weights)
    config["files"] = digests | {CONFIG: _digest_of(config)}
    text = json.dumps(config, indent=2, ensure_ascii=False)
    (work / CONFIG).write_text(text + "\n", encoding="utf-8")


def _part(config: dict[str, Any], part: str) -> Iterable[tuple[str, Any]]:
    found = config.get(part)
    return found.items() if isinstance(found, dict) else ()


def read_config(folder: Path) -> dict[str, Any]:
    """config.json; InputError if it is missing, damaged or of another version."""
    path = folder / CONFIG
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such model folder; `gram adapt` writes one")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: missing; {AGAIN}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: damaged ({error}); {AGAIN}") from None
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise InputError(f"{path}: is not of a classifier that `gram adapt` wrote")
    if config.get("version") != VERSION:
        raise InputError(
            f"{path}: is of version {config.get('version')}, and this gram reads version "
            f"{VERSION}; adapt again, or install the gram that wrote it "
            f"({config.get('versions', {}).get('gram-pipeline')})"
        )
    config.setdefault("trust", 1.0)  # that of models of before there was any
    if isinstance(config.get("data"), dict):
        config["data"].setdefault("sha256", [])  # so too
    flat = config | {f"{part}.{key}": v for part in PARTS for key, v in _part(config, part)}
    for key, kind in KEYS.items():
        if not isinstance(flat.get(key, MISSING), kind):
            raise InputError(f"{path}: damaged ('{key}' is missing, or not what it was); {AGAIN}")
    return config


def _weights(folder: Path, config: dict[str, Any]) -> dict[str, torch.Tensor]:
    path = folder / WEIGHTS
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: missing; {AGAIN}") from None
    if hashlib.sha256(content).hexdigest() != config["weights_sha256"]:
        raise InputError(f"{path}: truncated, or not the one that {CONFIG} tells of; {AGAIN}")
    try:
        return load(content)
    except SafetensorError as error:
        raise InputError(f"{path}: not a safetensors file ({error}); {AGAIN}") from None


def _collection(data: dict[str, Any]) -> Collection:
    """The pictures that were learned from; they are read where they lay, if they still do."""
    read = reader_of(data["source"])
    return Collection(
        data["source"], data["files"], data["labels"], read, data["notes"], data["sha256"]
    )


def _backbone_of(
    made_with: dict[str, str], folder: Path, given: str | Path | None
) -> tuple[Backbone, Path, str]:
    """The backbone that a model was made with, where it lies and its digest; InputError for
    another one.
    """
    place = given or made_with["path"]
    if not given and not Path(place).is_dir():
        raise InputError(
            f"{folder}: the backbone '{made_with['name']}' is not at {place} any more; say where "
            "it is (--backbone)"
        )
    tower, where = loaded(place)
    if (found := backbone_digest(where)) != made_with["sha256"]:
        raise InputError(
            f"{folder}: was made with the backbone '{made_with['name']}' (SHA-256 "
            f"{made_with['sha256'][:12]}…), and {where} is another one ({found[:12]}…); give the "
            "one that it was made with (--backbone)"
        )
    return tower, where, found


def load_model(
    kind: type[PromptClassifier], folder: Path, backbone: str | Path | None
) -> PromptClassifier:
    """The classifier of a folder; raises InputError naming the file and what is wrong with it."""
    config = read_config(folder)
    tensors = _weights(folder, config)
    if "matrix" in tensors and len(tensors["matrix"]) != len(config["classes"]):
        raise InputError(
            f"{folder / CONFIG}: names {len(config['classes'])} classes, and {WEIGHTS} beside it "
            f"holds {len(tensors['matrix'])}; {AGAIN}"
        )
    tower, where, found = _backbone_of(config["backbone"], folder, backbone)
    model = kind(
        config["backbone"]["name"],
        config["start"],
        config["method"],
        config["template"],
        config["folds"],
        config["seed"],
    )
    model.classes_ = np.array(config["classes"])
    model.names_ = [label_name(label) for label in model.classes_]
    model.method_, model.sentence_ = config["method"], config["sentence"]
    model.template_ = config["template"]
    model.comparison_, model.folds_ = config["comparison"], config["folds"]
    model.trust_, model.temperature_ = config["trust"], config["temperature"]
    model.title_, model.prompt_ = config["title"], config["prompt"]
    model.matrix_, model.features_ = tensors.get("matrix"), tensors["features"]
    model.tokens_ = {
        name.removeprefix(TOKENS): rows for name, rows in tensors.items() if name.startswith(TOKENS)
    }
    model.scores_ = tensors["scores"].numpy() if "scores" in tensors else None
    logits = tensors[HELD_OUT].numpy() if HELD_OUT in tensors else None
    model.held_out_logits_ = logits
    model.held_out_ = None if logits is None else chances(logits, model.temperature_)
    model.backbone_, model.place_, model.digest_ = tower, where, found
    model.collection_ = _collection(config["data"])
    model.targets_ = model.collection_.targets
    model.origin_ = folder.resolve()
    return model
