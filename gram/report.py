"""What `adapt` leaves for people: report.html and the model card."""

from __future__ import annotations

import base64
import io
from collections import Counter
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
from huggingface_hub import ModelCard, ModelCardData
from PIL import Image

from gram.choice import LEVEL
from gram.trust import calibration, calibration_error, chances, sets, share_interval
from pipeline.errors import InputError

if TYPE_CHECKING:
    from gram.estimator import PromptClassifier

WRONG = 60  # pictures that are shown
THUMBNAIL = 96  # pixels
COVERAGE = 0.9


def template(name: str) -> jinja2.Template:
    """A page of `gram/pages/`, in which all that is filled in is escaped."""
    text = resources.files("gram").joinpath("pages", name).read_text(encoding="utf-8")
    return jinja2.Environment(autoescape=True).from_string(text)


def thumbnail(picture: Image.Image) -> str:
    """A small JPEG as a data URL."""
    small = picture.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    packed = io.BytesIO()
    small.save(packed, "jpeg", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(packed.getvalue()).decode()


def per_class(model: PromptClassifier, guessed: np.ndarray) -> list[dict[str, Any]]:
    """name, pictures, accuracy and its interval of every class, held out."""
    rows = []
    for place, name in enumerate(model.names_):
        right = guessed[model.targets_ == place] == place
        low, high = share_interval(int(right.sum()), len(right))
        rows.append(
            {
                "name": name,
                "pictures": len(right),
                "accuracy": right.mean(),
                "low": low,
                "high": high,
            }
        )
    return rows


def confusions(model: PromptClassifier, guessed: np.ndarray) -> list[tuple[str, str, int]]:
    """(class, taken for, how often), most frequent first."""
    pairs = Counter(
        (model.names_[truth], model.names_[guess])
        for truth, guess in zip(model.targets_, guessed, strict=True)
        if truth != guess
    )
    return [(a, b, n) for (a, b), n in sorted(pairs.items(), key=lambda p: (-p[1], p[0]))]


def matrix(model: PromptClassifier, guessed: np.ndarray) -> np.ndarray:
    """(K, K) pictures of the row's class that were taken for the column's."""
    size = len(model.classes_)
    counts = np.zeros((size, size), dtype=int)
    np.add.at(counts, (model.targets_, guessed), 1)
    return counts


def _wrong(model: PromptClassifier, guessed: np.ndarray) -> list[dict[str, Any]]:
    found = []
    for row in np.flatnonzero(guessed != model.targets_)[:WRONG]:
        file = model.collection_.files[row]
        found.append(
            {
                "file": file,
                "label": model.names_[model.targets_[row]],
                "guessed": model.names_[guessed[row]],
                "chance": model.judged[row, guessed[row]],
                "picture": thumbnail(model.collection_.picture(row)),
            }
        )
    return found


def figures(model: PromptClassifier) -> dict[str, Any]:
    """What the held-out pictures say: accuracy and interval, calibration error before and after
    the temperature, and how large 90% prediction sets are.
    """
    right, logits = model.judged.argmax(axis=1) == model.targets_, model.held_out_logits_
    assert logits is not None, "they are kept with what was judged"
    low, high = share_interval(int(right.sum()), len(right))
    sizes = sets(model.judged, model.threshold(COVERAGE)).sum(axis=1)
    return {
        "pictures": len(right),
        "accuracy": right.mean(),
        "low": low,
        "high": high,
        "ece_before": calibration_error(chances(logits, 1.0), model.targets_),
        "ece": calibration_error(model.judged, model.targets_),
        "temperature": model.temperature_,
        "coverage": COVERAGE,
        "sure": (sizes == 1).mean(),
        "empty": (sizes == 0).mean(),
        "large": (sizes > 1).mean(),
    }


def _measured(model: PromptClassifier) -> dict[str, Any]:
    """What the page shows of held-out pictures; without any, that there is nothing."""
    if model.held_out_ is None:
        return {"figures": None}
    guessed = model.judged.argmax(axis=1)
    return {
        "figures": figures(model),
        "classes": per_class(model, guessed),
        "confusions": confusions(model, guessed),
        "matrix": matrix(model, guessed) if len(model.classes_) <= 30 else None,
        "wrong": _wrong(model, guessed),
        "bins": calibration(model.judged, model.targets_),
    }


def write_report(model: PromptClassifier, path: Path) -> None:
    """One page with everything in it; it loads nothing."""
    page = template("report.html.j2").render(model=model, level=LEVEL, **_measured(model))
    path.write_text(page, encoding="utf-8")


def licence(place: Path) -> str | None:
    """The licence that a backbone's own card names."""
    card = place / "README.md"
    try:
        return ModelCard.load(card).data.license if card.is_file() else None
    except (ValueError, OSError):
        return None


def write_card(model: PromptClassifier, path: Path) -> None:
    """A model card: data, method, figures, limits, licence of the backbone."""
    named = licence(model.place_)
    data = ModelCardData(
        license=named or "unknown", tags=["clip", "image-classification", "prompt-learning"]
    )
    body = template("card.md.j2").render(
        model=model,
        figures=figures(model) if model.held_out_ is not None else None,
        counts=Counter(model.collection_.labels),
        licence=named,
        repr=repr,
    )
    content = f"---\n{data.to_yaml()}\n---\n\n{body}\n"
    try:
        ModelCard(content)
    except ValueError as error:
        raise InputError(f"the model card could not be written ({error})") from None
    path.write_text(content, encoding="utf-8")
