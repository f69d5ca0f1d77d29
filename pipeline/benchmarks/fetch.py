"""Fetches those of the field's datasets whose publishers let anybody have the archives, and of
which the checksums are known.
"""

from __future__ import annotations

import os
import shutil
import sys
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from pipeline.artifacts import write_json
from pipeline.benchmarks.layouts.known import KNOWN
from pipeline.errors import InputError
from pipeline.sources.obtain import download

if sys.version_info >= (3, 11, 4):
    import tarfile
else:  # Debian 12's 3.11.2 has no filters
    from backports import tarfile  # type: ignore[no-redef]


@dataclass(frozen=True)
class Archive:
    """A file to fetch.

    Attributes:
        url, checksum: as in `download`. places: path in the archive → path in the dataset's folder.
        None: no archive, the file itself is wanted. inner: path of an archive in the archive, that
        `places` speaks of.
    """

    url: str
    checksum: str
    places: Mapping[str, str] | None
    inner: str | None = None


OXFORD = "https://www.robots.ox.ac.uk/~vgg/data"
SUN = "https://vision.princeton.edu/projects/2010/SUN"
BERKELEY = "https://people.eecs.berkeley.edu/~hendrycks"
AIRCRAFT = "fgvc-aircraft-2013b/data"


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


ARCHIVES: dict[str, tuple[Archive, ...]] = {
    "caltech101": (
        Archive(
            "https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip",
            "md5:3138e1922a9193bfa496528edbbc45d0",
            _same("101_ObjectCategories"),
            "caltech-101/101_ObjectCategories.tar.gz",
        ),
    ),
    "oxford_pets": (
        Archive(
            f"{OXFORD}/pets/data/images.tar.gz",
            "md5:5c4f3ee8e5d25df40f4fd59a7f44e54c",
            _same("images"),
        ),
        Archive(
            f"{OXFORD}/pets/data/annotations.tar.gz",
            "md5:95a8c909bbe2e81eed6a22bccdf3f68f",
            _same("annotations"),
        ),
    ),
    "flowers102": (
        Archive(
            f"{OXFORD}/flowers/102/102flowers.tgz",
            "md5:52808999861908f626f3c1f4e79d11fa",
            _same("jpg"),
        ),
        Archive(
            f"{OXFORD}/flowers/102/imagelabels.mat", "md5:e0620be6f572b9609742df49c70aed4d", None
        ),
        Archive(f"{OXFORD}/flowers/102/setid.mat", "md5:a5357ecc9cb78c4bef273ce3793fc85c", None),
    ),
    "food101": (
        Archive(
            "http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz",
            "md5:85eeb15f3717b99a5da872d97d918f87",
            {"food-101/images": "images", "food-101/meta": "meta"},
        ),
    ),
    "fgvc_aircraft": (
        Archive(
            f"{OXFORD}/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz",
            "md5:d4acdd33327262359767eeaa97a4f732",
            {
                f"{AIRCRAFT}/{name}": name
                for name in (
                    "images",
                    "variants.txt",
                    "images_variant_train.txt",
                    "images_variant_val.txt",
                    "images_variant_test.txt",
                )
            },
        ),
    ),
    "sun397": (
        Archive(f"{SUN}/SUN397.tar.gz", "md5:8ca2778205c41d23104230ba66911c7a", _same("SUN397")),
        Archive(
            f"{SUN}/download/Partitions.zip",
            "sha256:e3311ea5f812d4cc6faef194688343d1111f6cd6f70f2c62f393c2b8d6ba1ec9",
            _same("ClassName.txt", "Training_01.txt", "Testing_01.txt"),
        ),
    ),
    "dtd": (
        Archive(
            f"{OXFORD}/dtd/download/dtd-r1.0.1.tar.gz",
            "md5:fff73e5086ae6bdbea199a49dfb8a4c1",
            {"dtd/images": "images", "dtd/labels": "labels"},
        ),
    ),
    "eurosat": (
        Archive(
            "https://huggingface.co/datasets/torchgeo/eurosat/resolve/c877bcd43f099cd0196738f714544e355477f3fd/EuroSAT.zip",
            "md5:c8fa014336c82ac7804f0398fcb19387",
            _same("2750"),
        ),
    ),
    "imagenetv2": (
        Archive(
            "https://s3-us-west-2.amazonaws.com/imagenetv2public/imagenetv2-matched-frequency.tar.gz",
            "sha256:a32004f9e773279307499059d320336a23ccdc62cb32063da29bae9bd04c122c",
            _same("imagenetv2-matched-frequency-format-val"),
        ),
    ),
    "imagenet_a": (
        Archive(
            f"{BERKELEY}/imagenet-a.tar",
            "md5:c3e55429088dc681f30d81f4726b6595",
            _same("imagenet-a"),
        ),
    ),
    "imagenet_r": (
        Archive(
            f"{BERKELEY}/imagenet-r.tar",
            "md5:a61312130a589d0ca1a8fca1f2bd3337",
            _same("imagenet-r"),
        ),
    ),
}


def _unpack(archive: Path, into: Path) -> None:
    """Raises InputError for an archive that is damaged, or that would write outside of `into`;
    tarfile's own filter refuses links that lead out, too.
    """
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as content:
                for name in content.namelist():
                    if not (into / name).resolve().is_relative_to(into.resolve()):
                        raise InputError(
                            f"{archive.name}: holds '{name}', which would be written outside of "
                            "the dataset's folder; nothing was kept"
                        )
                content.extractall(into)
        else:
            with tarfile.open(archive) as content:
                content.extractall(into, filter="data")
    except tarfile.FilterError as error:
        raise InputError(
            f"{archive.name}: {error}, outside of the dataset's folder; nothing was kept"
        ) from None
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error) as error:
        raise InputError(
            f"{archive.name}: cannot be unpacked ({error}); nothing was kept"
        ) from None


def _place(archive: Archive, file: Path, folder: Path, work: Path) -> None:
    """Moves what is wanted of a fetched file into the dataset's folder, once all of it is
    unpacked.
    """
    if archive.places is None:
        folder.mkdir(parents=True, exist_ok=True)
        os.replace(file, folder / file.name)
        return
    unpacked = work / "unpacked"
    try:
        _unpack(file, unpacked)
        if archive.inner:
            inner = unpacked / archive.inner
            if not inner.is_file():
                raise InputError(f"{file.name}: holds no '{archive.inner}'; nothing was kept")
            _unpack(inner, unpacked)
        lacking = [name for name in archive.places if not (unpacked / name).exists()]
        if lacking:
            raise InputError(f"{file.name}: holds no '{lacking[0]}'; nothing was kept")
        folder.mkdir(parents=True, exist_ok=True)
        for name, place in archive.places.items():
            if not (folder / place).exists():
                os.replace(unpacked / name, folder / place)
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)
    file.unlink()


def _clear(work: Path) -> None:
    shutil.rmtree(work, ignore_errors=True)
    if work.parent.is_dir() and not any(work.parent.iterdir()):
        work.parent.rmdir()


def _have(archive: Archive, folder: Path, work: Path, mirror: str | None, site: str) -> None:
    """Fetches an archive and unpacks it, unless what it holds is there."""
    file = work / archive.url.rpartition("/")[2]
    wanted = [file.name] if archive.places is None else archive.places.values()
    if all((folder / place).exists() for place in wanted):
        return
    url = f"{mirror.rstrip('/')}/{file.name}" if mirror else archive.url
    try:
        if not file.exists():
            download(url, file, archive.checksum)
        _place(archive, file, folder, work)
    except InputError:
        _clear(work)
        raise
    except ValueError as error:
        _clear(work)
        raise InputError(
            f"{url}: {error}; nothing was kept. Fetch it again, or see {site}"
        ) from None
    except (OSError, HTTPException) as error:
        raise InputError(
            f"{url}: cannot be fetched ({error}); try again, name a --mirror, or see {site}"
        ) from None


def fetch(
    name: str,
    root: Path,
    mirror: str | None = None,
    archives: Mapping[str, Sequence[Archive]] = ARCHIVES,
) -> Path:
    """Fetches and unpacks a dataset into its folder in `root`, in the field's layout; what is there
    already stays as it is.

    Archives come into `root/.partial/`, where a broken download waits to be continued.

    Args:
        mirror: take each archive from this address followed by its file's name, instead of from its
        publisher.

    Returns:
        The dataset's folder.

    Raises InputError, with the remedy, if it cannot be had.
    """
    known = KNOWN[name]
    if name not in archives:
        raise InputError(
            f"{name}: its publisher wants you to fetch it yourself, or no checksum of it is "
            f"known; see {known.site} and docs/benchmarks.md for where it belongs"
        )
    folder, work = root / known.folder, root / ".partial" / known.folder
    for archive in archives[name]:
        _have(archive, folder, work, mirror, known.site)
    _clear(work)
    # no archive has the names
    if name == "flowers102" and not (folder / "cat_to_name.json").exists():
        from torchvision.datasets import Flowers102

        write_json(
            {str(number): words for number, words in enumerate(Flowers102.classes, 1)},
            folder / "cat_to_name.json",
        )
    return folder
