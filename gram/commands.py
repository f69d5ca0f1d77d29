"""What the commands do, apart from how it is said."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gram.activation import activation_note
from gram.budget import said, single_steps, within
from gram.collection import (
    UNSURE_FOLDER,
    Collection,
    examine,
    holds_pictures,
    listed,
    read_collection,
)
from gram.estimator import PromptClassifier
from gram.inputs import Say, loaded
from gram.looking import opened
from gram.methods import titled
from gram.model_folder import check_target, read_config
from gram.trust import calibration_error, sets, share_interval
from pipeline.artifacts import replacing
from pipeline.errors import InputError
from pipeline.pictures import folder_name

if TYPE_CHECKING:
    from rich.progress import Progress

UNSURE = "unsure"
TEMPLATE = "a photo of a {}."  # of `gram check`, as `gram adapt` has by default
MOST_NAMES = 100  # that a copy tries before it gives up


def check_folder(folder: Path, backbone: str | None = None) -> dict[str, Any]:
    """Classes, notes and every problem of a folder, zip or CSV; every picture is opened. With a
    backbone, and where nothing is wrong, its activation is compared with the other one.
    """
    found, problems = examine(folder)
    for row in range(len(found.files)):
        try:
            found.picture(row)
        except InputError as error:
            problems.append(f"{found.source}: {error}")
    counts = Counter(found.labels)
    alone = [name for name, count in sorted(counts.items()) if count == 1]
    notes = [*found.notes]
    if alone:
        notes.append(
            f"{len(alone)} classes have one picture ('{alone[0]}'): `gram adapt` needs two to hold "
            "one out, or --folds 0"
        )
    if backbone and not problems:
        notes += filter(None, [activation_note(*loaded(backbone), found, TEMPLATE)])
    return {
        "source": found.source,
        "pictures": len(found.files),
        "classes": dict(sorted(counts.items())),
        "notes": notes,
        "problems": problems,
    }


@contextmanager
def bars() -> Iterator[Progress]:
    """Progress bars on a terminal's error stream; elsewhere nothing is shown."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        yield progress


def adapt_folder(
    settings: PromptClassifier, folder: Path, out: Path, minutes: float, say: Say
) -> dict[str, Any]:
    """Learns from a folder and writes the model; everything is checked before it begins."""
    check_target(out, folder)
    collection = read_collection(folder)
    for note in collection.notes:
        say(f"note: {note}")
    ready = settings.prepared(collection, say)
    if words := activation_note(ready.task.backbone, ready.place, collection, settings.template):
        say(f"note: {words}")
    if ready.folds < settings.folds:
        say(f"note: {ready.folds} folds instead of {settings.folds}, as the smallest class allows")
    ready, seconds, left_out = within(ready, minutes)
    for name, alone in left_out.items():
        say(
            f"note: {titled(name, ready.task.start)} is left out, to stay within {minutes:g} "
            f"minutes (--minutes): it would take about {said(alone)}"
        )
    if words := single_steps(ready):
        say(f"note: {words}")
    say(
        f"{len(collection.files)} pictures, {len(collection.names)} classes; this will take about "
        f"{said(seconds)}"
    )
    with bars() as progress:
        looking = progress.add_task("pictures", total=len(collection.files))
        learning = progress.add_task("learning", total=ready.folds * len(ready.methods) + 1)
        settings.learn(
            ready,
            lambda pictures: _counted(pictures, lambda: progress.advance(looking)),
            lambda: progress.advance(learning),
        )
    settings.save(out)
    notes = {"left_out": list(left_out), "notes": collection.notes}
    return {"model": str(out), **_told(settings), **notes}


def _told(model: PromptClassifier) -> dict[str, Any]:
    held_out, targets = model.held_out_, model.targets_
    return {
        "method": model.method_,
        "sentence": model.sentence_,
        "classes": model.names_,
        "pictures": len(targets),
        "folds": model.folds_,
        "accuracy": None
        if held_out is None
        else float((held_out.argmax(axis=1) == targets).mean()),
        "comparison": model.comparison_,
    }


def _counted(items: Any, tick: Callable[[], Any]) -> Iterator:
    for item in items:
        yield item
        tick()


@dataclass(frozen=True)
class Asked:
    """What `predict` is asked for: other names, classes per picture, coverage of prediction sets,
    and where copies go.
    """

    names: str | None
    top: int
    unsure: float | None
    copy_to: Path | None


def _renamed(model: PromptClassifier, names: str | None) -> PromptClassifier:
    if names is None:
        return model
    listed = [name.strip() for name in names.removeprefix("+").split(",") if name.strip()]
    return model.with_classes(listed, replace=not names.startswith("+"))


@dataclass(frozen=True)
class Given:
    """A picture that is to be named: its path as a person knows it, and its bytes."""

    path: Path
    read: Callable[[], bytes]


def _given(places: list[Path], say: Say) -> list[Given]:
    """Every picture of every folder, zip, CSV or file, as often as it is given; what is passed over
    is said.
    """
    found = []
    for place in places:
        if holds_pictures(place):
            inside = listed(place)
            for note in inside.notes:
                say(f"note: {place}: {note}")
            above = place.parent if place.suffix.lower() == ".csv" and place.is_file() else place
            found += [Given(above / name, partial(inside.read, name)) for name in inside.files]
        elif place.is_file():
            found.append(Given(place, place.read_bytes))
        else:
            raise InputError(f"{place}: there is no such picture or folder")
    return found


def predict_pictures(
    folder: Path, backbone: str | None, places: list[Path], asked: Asked, say: Say
) -> tuple[list[dict[str, Any]], list[str]]:
    """A row per picture that can be read, and what is wrong with the others."""
    model = _renamed(PromptClassifier.load(folder, backbone), asked.names)
    threshold = None if asked.unsure is None else model.threshold(asked.unsure)
    if model.scores_ is not None and threshold is not None and threshold >= 1:
        say(
            f"note: {len(model.scores_)} held-out pictures are too few to be sure of any at "
            f"{asked.unsure:g}; take a smaller share, or adapt to more pictures"
        )
    kept: list[Given] = []
    unreadable: list[str] = []

    def pictures() -> Iterator:
        for picture in _given(places, say):
            try:
                yield opened(str(picture.path), picture.read)
            except InputError as error:
                unreadable.append(str(error))
            else:
                kept.append(picture)

    chances = model.probabilities(model.looked(pictures()))
    marks = None if threshold is None else sets(chances, threshold)
    rows = [
        _row(model, picture.path, chances[i], None if marks is None else marks[i], asked.top)
        for i, picture in enumerate(kept)
    ]
    if asked.copy_to is not None:
        unreadable += _copy(kept, rows, asked.copy_to)
    return rows, unreadable


def _row(
    model: PromptClassifier, file: Path, chances: np.ndarray, mark: np.ndarray | None, top: int
) -> dict[str, Any]:
    order = np.argsort(-chances, kind="stable")[:top]
    row = {
        "path": str(file),
        "label": model.names_[order[0]],
        "probability": float(chances[order[0]]),
        "top": [{"label": model.names_[k], "probability": float(chances[k])} for k in order],
    }
    if mark is not None:
        row[UNSURE] = bool(mark.sum() != 1)
        row["set"] = [model.names_[k] for k in np.flatnonzero(mark)]
    return row


def _target(source: Path, content: bytes, where: Path) -> Path:
    """A name in a folder that is free, or has the picture already."""
    mark = hashlib.sha256(content).hexdigest()[:8]
    names = [source.name, f"{source.stem}-{mark}{source.suffix}"]
    names += [f"{source.stem}-{mark}-{number}{source.suffix}" for number in range(2, MOST_NAMES)]
    for target in (where / name for name in names):
        if not os.path.lexists(target) or (target.is_file() and target.read_bytes() == content):
            return target
    raise InputError(f"{where / source.name}: is there already, as {MOST_NAMES} other files")


def _copy(pictures: list[Given], rows: list[dict[str, Any]], into: Path) -> list[str]:
    """Copies every picture into its class's folder; nothing that is there is overwritten.

    Returns:
        What could not be copied, and why.
    """
    failed = []
    for picture, row in zip(pictures, rows, strict=True):
        source = picture.path
        try:
            where = into / (UNSURE_FOLDER if row.get(UNSURE) else folder_name(row["label"]))
            where.mkdir(parents=True, exist_ok=True)
            content = picture.read()
            target = _target(source, content, where)
            if not target.exists():
                with replacing(target) as temporary:
                    temporary.write_bytes(content)
        except (OSError, InputError) as error:
            reason = f"{error.strerror}: {error.filename}" if isinstance(error, OSError) else error
            failed.append(f"{source} was not copied to {into} ({reason})")
    return failed


def _own_classes(model: PromptClassifier, collection: Collection) -> tuple[np.ndarray, list[str]]:
    """(n,) places of the labels among the model's classes, and notes on names that differ.

    Raises InputError for a class that is none of the model's.
    """
    truth = model.places(collection)
    if (truth < 0).any():
        strange = collection.labels[int(np.flatnonzero(truth < 0)[0])]
        more = ", …" if model.names_[5:] else ""
        raise InputError(
            f"{collection.source}: the class '{strange}' is none of the model's "
            f"({', '.join(model.names_[:5])}{more}); rename the folder, or leave it out"
        )
    pairs = dict(zip(collection.labels, (model.names_[k] for k in truth), strict=True))
    notes = [
        f"the class '{name}' is taken for the model's '{known}'"
        for name, known in pairs.items()
        if name != known
    ]
    return truth, notes


def _share_right(right: np.ndarray) -> dict[str, Any]:
    """Pictures, accuracy and its interval, of (n,) bool."""
    low, high = share_interval(int(right.sum()), len(right))
    return {
        "pictures": len(right),
        "accuracy": float(right.mean()),
        "low": low,
        "high": high,
    }


def evaluate_folder(folder: Path, backbone: str | None, pictures: Path, say: Say) -> dict[str, Any]:
    """Accuracy with its 95% interval, of each class too, calibration error, how often 90%
    prediction sets hold the truth, and how many of the pictures the model was adapted to. Every
    row counts, copies too.
    """
    model = PromptClassifier.load(folder, backbone)
    collection = read_collection(pictures, to_learn=False)
    truth, notes = _own_classes(model, collection)
    known = set(model.collection_.digests)
    seen = sum(digest in known for digest in collection.digests)
    if seen:
        notes.append(
            f"{seen} of {len(truth)} pictures are the very ones that the model was adapted to, so "
            "the figures flatter it"
        )
    notes = [*collection.notes, *notes]
    for note in notes:
        say(f"note: {note}")
    chances = model.predict_proba(collection)
    right = chances.argmax(axis=1) == truth

    found = _share_right(right)
    found["calibration_error"] = calibration_error(chances, truth)
    if model.scores_ is not None:
        marks = sets(chances, model.threshold(0.9))
        found["sets_at_0.9"] = {
            "hold_the_truth": float(marks[np.arange(len(truth)), truth].mean()),
            "sure": float((marks.sum(axis=1) == 1).mean()),
        }
    found["classes"] = {
        name: _share_right(right[truth == k])
        for k, name in enumerate(model.names_)
        if (truth == k).any()
    }
    found |= {"adapted_to": seen, "notes": notes}
    return found


def describe(folder: Path) -> dict[str, Any]:
    """What config.json says, without the lists of files."""
    config = read_config(folder)
    data = {k: v for k, v in config["data"].items() if k not in ("files", "labels", "sha256")}
    config.pop("files", None)
    return config | {"data": data}
