"""A labelled dataset to draw tasks from: its classes are the topics, folders above them the
domains.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.artifacts import (
    from_vectors,
    naming_damage,
    numbered,
    open_table,
    read_shards,
    shard_paths,
    to_vectors,
    vector_dim,
    write_parts,
)
from pipeline.benchmarks.schemas import labelled_schema
from pipeline.benchmarks.views import opened
from pipeline.clip.backbone import Backbone, image_features, viewed
from pipeline.episodes.tasks import Pool, ReadPictures
from pipeline.errors import InputError, quoted
from pipeline.pictures import (
    Pictures,
    check_classes,
    check_depths,
    check_spellings,
    class_name,
    lines_in,
    same_words,
)

PER_SHARD = 1000  # pictures
# pictures that are read to have one of them; fewer would make the files' footers long
PER_GROUP = 4
SYNSET = re.compile(r"n\d{8}(\s+|$)")

Row = tuple[str, str, str]  # path, class, domain


def by_folder(pictures: Pictures) -> list[Row]:
    """`[train/][<domain>/]<class>/<picture>`; where there is a train/, the rest (a test part) is
    left alone. `_` in a folder's name is a space in the class's.
    """
    top = pictures.top_folder(lambda name: name.casefold().startswith(("train/", "test/")))
    top = top or pictures.top_folder(lambda name: name.count("/") in (1, 2))
    train = [n for n in pictures.names if n.removeprefix(top).casefold().startswith("train/")]
    rows, folders = [], set()
    for name in train or pictures.names:
        parts = name.removeprefix(top).split("/")[1 if train else 0 :]
        if len(parts) not in (2, 3):
            raise InputError(
                f"{pictures.path}: '{name}' does not fit [train/][<domain>/]<class>/<picture>; "
                "sort the pictures into that layout"
            )
        folders.add(parts[-2])
        rows.append((name, class_name(parts[-2]), parts[0] if len(parts) == 3 else ""))
    check_spellings(pictures.path, folders)
    check_depths(pictures.path, train or pictures.names)
    check_classes(pictures.path, {name for _, name, _ in rows})
    return rows


def _lines(pictures: Pictures, name: str) -> list[str]:
    try:
        return lines_in(pictures.read(name), pictures.path / name)
    except (KeyError, OSError):
        raise InputError(
            f"{pictures.path}: there is no file '{name}' in it; 'list' and 'names' of an entry of "
            "'labelled' are relative to its 'path'"
        ) from None


def _names_of(pictures: Pictures, names_file: str) -> list[str]:
    """The class of every label; names that are one prompt are one class, which is noted."""
    names = [
        SYNSET.sub("", line.strip(), count=1).partition(",")[0].strip()
        for line in _lines(pictures, names_file)
    ]
    spelled: dict[str, str] = {}
    spellings = {name: spelled.setdefault(same_words(name), name) for name in names}
    for name, first in spellings.items():
        if name != first:
            pictures.notes.append(
                f"{pictures.path / names_file}: '{first}' and '{name}' are one class, as no prompt "
                "tells them apart"
            )
    return [spellings[name] for name in names]


def by_list(pictures: Pictures, list_file: str, names_file: str) -> list[Row]:
    """WebVision's layout: a list of lines `<picture> <label>`, and the names of the labels, one a
    line from label 0.

    A name ends at its first comma (`tench, Tinca tinca`), a synset's number before it is left out.
    Labels of one name are one class: a prompt could not tell them apart (ImageNet's "Cardigan" is
    a dog, its "cardigan" is knitted); the first spelling stays. There are no domains.

    Raises InputError naming the line: no number at its end, a label without a name, a picture that
    is not there, or one that is listed under two classes.
    """
    names = _names_of(pictures, names_file)
    present, classes, repeated = set(pictures.names), {}, 0
    for number, line in enumerate(_lines(pictures, list_file), 1):
        where = f"{pictures.path / list_file}, line {number}"
        name, _, label = line.strip().rpartition(" ")
        if not name or not label.isdecimal():
            raise InputError(
                f"{where}: {quoted(line)} is not '<picture> <label>' with a number as the label"
            )
        if int(label) >= len(names) or not names[int(label)]:
            raise InputError(
                f"{where}: label {label} has no name in {names_file}, which has {len(names)} "
                f"lines; line {int(label) + 1} of it would be the name"
            )
        if name not in present:
            raise InputError(
                f"{where}: {pictures.path} has no picture {quoted(name)}; remove the line, or "
                "add the file"
            )
        repeated += name in classes
        if classes.setdefault(name, names[int(label)]) != names[int(label)]:
            raise InputError(
                f"{where}: '{name}' is listed as '{classes[name]}' and as '{names[int(label)]}'; "
                "leave one of the two"
            )
    if repeated:
        pictures.notes.append(
            f"{pictures.path / list_file}: {repeated} lines repeat a picture; each counts once"
        )
    return [(name, classes[name], "") for name in sorted(classes)]


def read_labelled(
    pictures: Pictures,
    per_class: int,
    seed: int,
    list_file: str | None = None,
    names_file: str | None = None,
) -> pl.DataFrame:
    """key (the path), topic, name, domain of up to `per_class` pictures a class, in path order;
    `by_list` if there is a list, else `by_folder`.

    Topics and domains number the names in sorted order.

    Raises InputError for another layout, or for no pictures.
    """
    rows = (
        by_list(pictures, list_file, names_file)
        if list_file and names_file
        else by_folder(pictures)
    )
    if not rows:
        raise InputError(f"{pictures.path / (list_file or '')}: holds no pictures")
    keys, classes, domains = zip(*rows, strict=True)
    names, topic = np.unique(classes, return_inverse=True)
    rng = np.random.default_rng(seed)
    members = (np.flatnonzero(topic == t) for t in range(len(names)))
    chosen = np.sort(np.concatenate([rng.permutation(rows)[:per_class] for rows in members]))
    table = pl.DataFrame(
        {
            "key": keys,
            "topic": topic,
            "name": classes,
            "domain": np.unique(domains, return_inverse=True)[1],
        }
    )
    return table[chosen]


def write_labelled(
    table: pl.DataFrame, pictures: Pictures, backbone: Backbone, work: Path, progress
) -> None:
    """Features and files of the pictures of `read_labelled`, in shards; those that are there
    already stay.
    """
    schema, slices = labelled_schema(backbone.dim), list(table.iter_slices(PER_SHARD))
    for number, rows in enumerate(progress(slices, "features")):
        out = work / f"{number:05d}.parquet"
        if not out.exists():
            files = [pictures.read(key) for key in rows["key"]]
            named = zip(rows["key"], files, strict=True)
            views = viewed(backbone, lambda picture: opened(pictures, *picture), named)
            features = image_features(backbone, views).numpy()
            columns = [
                *(rows[name].to_arrow() for name in ("key", "topic", "name", "domain")),
                to_vectors(features),
                pa.array(files, pa.binary()),
            ]
            whole = pa.table(columns, names=schema.names)
            write_parts(
                (whole.slice(first, PER_GROUP) for first in range(0, len(whole), PER_GROUP)),
                out,
                numbered(schema, number, len(slices)),
            )


def labelled_pool(folder: Path) -> Pool:
    """What tasks are drawn from; the files stay on disk."""
    table = read_shards(
        folder,
        labelled_schema(vector_dim(shard_paths(folder)[0], "image")),
        ["key", "topic", "name", "domain", "image"],
    )
    rows = pl.from_arrow(table.select(["topic", "name"])).unique().sort("topic")
    return Pool(
        table["topic"].to_numpy(),
        table["domain"].to_numpy(),
        rows["name"].to_list(),
        table["key"].to_pylist(),
        from_vectors(table["image"]),
    )


def labelled_pictures(folder: Path) -> ReadPictures:
    """Reads the files of pictures by their rows in `labelled_pool`, from any thread."""
    paths = shard_paths(folder)
    footers = [open_table(path, pa.schema([("picture", pa.binary())])).metadata for path in paths]

    def read(rows: np.ndarray) -> list[bytes]:
        found = {}
        for shard in np.unique(rows // PER_SHARD):
            inside = np.unique(rows[rows // PER_SHARD == shard] % PER_SHARD)
            groups, place = np.unique(inside // PER_GROUP, return_inverse=True)
            with naming_damage(paths[shard]):
                column = pq.ParquetFile(
                    paths[shard], metadata=footers[shard], page_checksum_verification=True
                ).read_row_groups(groups.tolist(), columns=["picture"])["picture"]
            # Every group but a shard's last is full.
            pictures = column.take(pa.array(place * PER_GROUP + inside % PER_GROUP)).to_pylist()
            found |= zip((shard * PER_SHARD + inside).tolist(), pictures, strict=True)
        return [found[row] for row in rows.tolist()]

    return read
