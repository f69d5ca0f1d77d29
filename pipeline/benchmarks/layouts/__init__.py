"""Reads a labelled dataset in one of the layouts that people have: folders of classes or domains,
or one of the field's fifteen (docs/benchmarks.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa

from pipeline.benchmarks.layouts.domains import read_domains
from pipeline.benchmarks.layouts.imagenet import IMAGENETS
from pipeline.benchmarks.layouts.items import Parts, check_files, check_parts
from pipeline.benchmarks.layouts.known import KNOWN
from pipeline.benchmarks.layouts.official import OFFICIAL
from pipeline.benchmarks.layouts.split_file import read_split
from pipeline.benchmarks.params import LAYOUTS, SPLIT, Split
from pipeline.benchmarks.reader import read_samples, samples_table
from pipeline.errors import InputError
from pipeline.pictures import Pictures


@dataclass(frozen=True)
class Dataset:
    """A dataset's pictures and what is known of them.

    Attributes:
        samples: rows of `SAMPLES`, train before val before test; `file` is relative to the
        dataset's folder. pictures: reads the files. split: "own" folders, the parts of the
        "reference", or other ones by the publisher's "official" lists.
    """

    samples: pa.Table
    pictures: Pictures
    split: Literal["own", "reference", "official"]


def _known(layout: str, top: Path) -> tuple[Parts, Literal["reference", "official"]]:
    known = KNOWN[layout]
    if layout in IMAGENETS:
        parts = IMAGENETS[layout](top, known.pictures)
        check_parts(parts, top, one_name=False)
        return parts, "reference"
    split_file = top / known.split_file if known.split_file else None
    if split_file and split_file.exists():
        parts = read_split(split_file, known.pictures)
        check_files(parts, top, split_file)
        return parts, "reference"
    parts = OFFICIAL[layout](top, known.pictures)
    check_parts(parts, top)
    check_files(parts, top, top)
    return parts, "official" if split_file else "reference"


def read_benchmark(
    layout: str, path: Path | str, domains: list[str] | None = None, split: Split | None = None
) -> Dataset:
    """A dataset in `layout` (one of `LAYOUTS`) from its own folder; of "folders" and "domains" it
    may be a zip, too.

    Args:
        domains: of "folders": keep only these domains' test pictures; of "domains": only these.
        split: of "domains" alone, which has no parts of its own.

    Raises InputError naming file, row or class and the remedy. The pictures themselves are not
    opened.
    """
    if layout not in LAYOUTS:
        raise InputError(f"layout '{layout}' is not known, only {', '.join(LAYOUTS)}")
    if layout == "folders":
        pictures = Pictures(path)
        return Dataset(read_samples(pictures, domains), pictures, "own")
    if layout == "domains":
        if split is None:
            raise InputError(f"{path}: the layout 'domains' needs a 'split: {SPLIT}'")
        pictures = Pictures(path)
        return Dataset(read_domains(pictures, domains, split), pictures, "own")
    if domains is not None:
        raise InputError(
            f"{path}: 'domains' is for the layout 'folders' or 'domains'; '{layout}' has none"
        )
    if not Path(path).is_dir():
        raise InputError(
            f"{path}: there is no such folder; the layout '{layout}' is read from the dataset's "
            f"own folder ({KNOWN[layout].site})"
        )
    parts, whose = _known(layout, Path(path))
    rows = [
        (part, "", item.label, item.name, item.file)
        for part in ("train", "val", "test")
        for item in parts[part]
    ]
    return Dataset(samples_table(rows), Pictures(path), whose)
