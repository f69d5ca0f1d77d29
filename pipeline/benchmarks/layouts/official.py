"""The parts of each dataset by its publisher's own lists, for whoever has no split file of the
reference.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pipeline.benchmarks.layouts.items import (
    Item,
    Parts,
    carve_val,
    class_folders,
    in_folder,
    lines_of,
    no_such_list,
    object_of,
    pictures_in,
    split_in_three,
)
from pipeline.errors import InputError, quoted

CALTECH_NAMES = {
    "airplanes": "airplane",
    "Faces": "face",
    "Leopards": "leopard",
    "Motorbikes": "motorbike",
}
CALTECH_LEFT_OUT = ("BACKGROUND_Google", "Faces_easy")
EUROSAT_NAMES = {
    "AnnualCrop": "Annual Crop Land",
    "HerbaceousVegetation": "Herbaceous Vegetation Land",
    "Highway": "Highway or Road",
    "Industrial": "Industrial Buildings",
    "Pasture": "Pasture Land",
    "PermanentCrop": "Permanent Crop Land",
    "Residential": "Residential Buildings",
    "SeaLake": "Sea or Lake",
}


def _fields(path: Path, form: str) -> list[tuple[str, dict[str, str]]]:
    """(where, named groups) of every line; `form` is a regular expression. Raises InputError
    naming the line that does not fit.
    """
    found = []
    for where, line in lines_of(path):
        match = re.fullmatch(form, line)
        if not match:
            raise InputError(
                f"{where}: {quoted(line)} is not what this list should hold; obtain it again"
            )
        found.append((where, match.groupdict()))
    return found


def _mat(path: Path, *keys: str) -> list[np.ndarray]:
    """Variables of a MATLAB file as flat arrays. Raises InputError if there is no such file, or
    it lacks one.
    """
    from scipy.io import loadmat

    try:
        content = loadmat(path, squeeze_me=True)
    except FileNotFoundError:
        raise no_such_list(path) from None
    except Exception as error:  # scipy raises many kinds for damaged files
        raise InputError(f"{path}: not a readable MATLAB file ({error}); obtain it again") from None
    for key in keys:
        if key not in content:
            raise InputError(f"{path}: has no variable '{key}'; obtain it again")
    return [np.atleast_1d(content[key]) for key in keys]


def _by_class(folder: str, lists: dict[str, list[tuple[str, str]]]) -> Parts:
    """Parts of lists of (where, `<class>/<picture>`); labels number the class folders in sorted
    order.
    """
    names = sorted({file.split("/")[0] for rows in lists.values() for _, file in rows})
    label = {name: i for i, name in enumerate(names)}
    return {
        part: [
            Item(in_folder(folder, file, where), label[file.split("/")[0]], file.split("/")[0])
            for where, file in rows
        ]
        for part, rows in lists.items()
    }


def _carved(trainval: list[Item], test: list[Item]) -> Parts:
    train, val = carve_val(trainval)
    return {"train": train, "val": val, "test": test}


def _class_folders(
    top: Path, folder: str, names: dict[str, str], left_out: tuple[str, ...] = ()
) -> Parts:
    folders = [name for name in class_folders(top / folder) if name not in left_out]
    return split_in_three(
        [
            Item(f"{folder}/{file}", label, names.get(name, name))
            for label, name in enumerate(folders)
            for file in pictures_in(top / folder, name)
        ]
    )


def caltech101(top: Path, folder: str) -> Parts:
    return _class_folders(top, folder, CALTECH_NAMES, CALTECH_LEFT_OUT)


def eurosat(top: Path, folder: str) -> Parts:
    return _class_folders(top, folder, EUROSAT_NAMES)


def oxford_pets(top: Path, folder: str) -> Parts:
    def read(name: str) -> list[Item]:
        rows = _fields(
            top / "annotations" / name,
            r"(?P<breed>\S+)_(?P<number>\d+) (?P<label>[1-9]\d*) \d+ \d+",
        )
        return [
            Item(
                in_folder(folder, f"{f['breed']}_{f['number']}.jpg", where),
                int(f["label"]) - 1,
                f["breed"].lower(),
            )
            for where, f in rows
        ]

    return _carved(read("trainval.txt"), read("test.txt"))


def stanford_cars(top: Path, folder: str) -> Parts:
    meta = top / "devkit" / "cars_meta.mat"
    names = [str(name) for name in _mat(meta, "class_names")[0]]

    def read(path: Path, pictures: str) -> list[Item]:
        (rows,) = _mat(path, "annotations")
        if not {"fname", "class"} <= set(rows.dtype.names or ()):
            raise InputError(
                f"{path}: its 'annotations' have no 'fname' or no 'class'; the test list is "
                "cars_test_annos_withlabels.mat"
            )
        items = []
        for number, row in enumerate(rows, 1):
            label = int(row["class"]) - 1
            if not 0 <= label < len(names):
                raise InputError(
                    f"{path}: row {number} has class {label + 1}, but {meta} names {len(names)}; "
                    "obtain both again"
                )
            words = names[label].split(" ")
            items.append(
                Item(
                    in_folder(pictures, str(row["fname"]), f"{path}: row {number}"),
                    label,
                    " ".join([words[-1], *words[:-1]]),
                )
            )
        return items

    return _carved(
        read(top / "devkit" / "cars_train_annos.mat", "cars_train"),
        read(top / "cars_test_annos_withlabels.mat", "cars_test"),
    )


def flowers102(top: Path, folder: str) -> Parts:
    (labels,) = _mat(top / "imagelabels.mat", "labels")
    sets = dict(
        zip(
            ("train", "val", "test"),
            _mat(top / "setid.mat", "trnid", "valid", "tstid"),
            strict=True,
        )
    )
    names = object_of(top / "cat_to_name.json")
    nameless = sorted(set(labels.tolist()) - {int(key) for key in names if key.isdecimal()})
    if nameless:
        raise InputError(
            f"{top / 'cat_to_name.json'}: has no name for class {nameless[0]}; obtain it again"
        )
    beyond = [i for ids in sets.values() for i in ids.tolist() if not 1 <= i <= len(labels)]
    if beyond:
        raise InputError(
            f"{top / 'setid.mat'}: has picture {beyond[0]}, but imagelabels.mat has {len(labels)} "
            "labels; obtain both again"
        )
    return {
        part: [
            Item(
                f"{folder}/image_{i:05d}.jpg",
                int(labels[i - 1]) - 1,
                str(names[str(labels[i - 1])]),
            )
            for i in ids.tolist()
        ]
        for part, ids in sets.items()
    }


def food101(top: Path, folder: str) -> Parts:
    def read(name: str) -> list[tuple[str, str]]:
        lists = top / "meta" / f"{name}.json"
        if lists.exists() and not lists.with_suffix(".txt").exists():
            return [
                (f"{lists}: '{key}'", f"{file}.jpg")
                for key, files in object_of(lists).items()
                for file in files
            ]
        return [
            (where, f"{f['file']}.jpg")
            for where, f in _fields(lists.with_suffix(".txt"), r"(?P<file>[^/]+/[^/]+)")
        ]

    parts = _by_class(folder, {"train": read("train"), "test": read("test")})
    return _carved(parts["train"], parts["test"])


def fgvc_aircraft(top: Path, folder: str) -> Parts:
    label = {name: i for i, (_, name) in enumerate(lines_of(top / "variants.txt"))}

    def read(path: Path) -> list[Item]:
        rows = _fields(path, r"(?P<number>\d+) (?P<name>.+)")
        for where, f in rows:
            if f["name"] not in label:
                raise InputError(
                    f"{where}: {quoted(f['name'])} is not in variants.txt; obtain both again"
                )
        return [Item(f"{folder}/{f['number']}.jpg", label[f["name"]], f["name"]) for _, f in rows]

    return {part: read(top / f"images_variant_{part}.txt") for part in ("train", "val", "test")}


def sun397(top: Path, folder: str) -> Parts:
    label = {
        f["folder"]: i
        for i, (_, f) in enumerate(_fields(top / "ClassName.txt", r"/(?P<folder>[^/]/.+)"))
    }

    def read(path: Path) -> list[Item]:
        items = []
        for where, f in _fields(path, r"/(?P<folder>[^/]/.+)/(?P<file>[^/]+)"):
            if f["folder"] not in label:
                raise InputError(
                    f"{where}: class '/{f['folder']}' is not in ClassName.txt; obtain both again"
                )
            name = " ".join(reversed(f["folder"].split("/")[1:]))
            items.append(
                Item(
                    in_folder(folder, f"{f['folder']}/{f['file']}", where), label[f["folder"]], name
                )
            )
        return items

    return _carved(read(top / "Training_01.txt"), read(top / "Testing_01.txt"))


def dtd(top: Path, folder: str) -> Parts:
    return _by_class(
        folder,
        {
            part: [
                (where, f["file"])
                for where, f in _fields(top / "labels" / f"{part}1.txt", r"(?P<file>[^/]+/[^/]+)")
            ]
            for part in ("train", "val", "test")
        },
    )


def ucf101(top: Path, folder: str) -> Parts:
    form = r"(?P<action>[^/]+)/(?P<video>[^/]+)\.avi(?: (?P<label>[1-9]\d*))?"
    rows = {
        part: _fields(top / "ucfTrainTestlist" / f"{part}list01.txt", form)
        for part in ("train", "test")
    }
    label = {f["action"]: int(f["label"]) - 1 for _, f in rows["train"] if f["label"]}

    def items(part: str) -> list[Item]:
        found = []
        for where, f in rows[part]:
            if f["action"] not in label:
                raise InputError(
                    f"{where}: no line of trainlist01.txt gives '{f['action']}' a label; obtain "
                    "both lists again"
                )
            name = "_".join(re.findall(r"[A-Z][^A-Z]*", f["action"]))
            found.append(
                Item(in_folder(folder, f"{name}/{f['video']}.jpg", where), label[f["action"]], name)
            )
        return found

    return _carved(items("train"), items("test"))


# (its folder, the folder of its pictures) → parts whose lists are not yet checked.
OFFICIAL: dict[str, Callable[[Path, str], Parts]] = {
    reader.__name__: reader
    for reader in (
        caltech101,
        oxford_pets,
        stanford_cars,
        flowers102,
        food101,
        fgvc_aircraft,
        sun397,
        dtd,
        eurosat,
        ucf101,
    )
}
