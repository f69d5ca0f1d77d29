"""What a folder or zip of pictures holds: one reader, one idea of a picture, for every layout."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from textwrap import shorten
from urllib.parse import unquote

from pipeline.errors import InputError

PICTURE = re.compile(r"\.(jpe?g|jpe|jfif|png|webp|bmp|gif|tiff?|ppm|pgm|jp2|avif)$", re.IGNORECASE)
SYNSET = re.compile(r"n\d{8}")
LEFT_BY_PROGRAMS = {"__MACOSX", "@eaDir"}  # macOS's zips, and a kind of file server's thumbnails
# In folder names: what Linux, macOS or Windows refuses, or what would be read as something else.
REFUSED = re.compile(r"""[_%/\\:*?"<>|\x00-\x1f\x7f]|^[. ]|[. ]$""")
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # by Windows
MOST_NAME_BYTES = 255


def left_out(name: str) -> bool:
    """Whether a file or folder is no part of a dataset: hidden ones (`.ipynb_checkpoints`), and
    what programs leave beside pictures.
    """
    return name.startswith(".") or name in LEFT_BY_PROGRAMS


def _files(folder: Path, prefix: str = "", above: frozenset = frozenset()) -> Iterator[str]:
    """Relative paths of the files of a folder. Links are followed, but never into a folder that
    they lie in.

    Raises InputError for a link that leads nowhere, or a folder that cannot be read: what is behind
    it would be missing without a word.
    """
    try:
        status = folder.stat()
        here = (status.st_dev, status.st_ino)
        entries = [] if here in above else sorted(os.scandir(folder), key=lambda e: e.name)
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be read ({error.strerror}); mend or remove it"
        ) from None
    for entry in entries:
        if left_out(entry.name):
            continue
        if entry.is_dir():
            yield from _files(Path(entry.path), f"{prefix}{entry.name}/", above | {here})
        elif entry.is_file():
            yield prefix + entry.name
        elif entry.is_symlink():
            raise InputError(f"{entry.path}: a link that leads nowhere; mend or remove it")


class Pictures:
    """The picture files of a folder or zip: their relative paths, and their bytes."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._zip = None
        if not self.path.is_dir():
            if not zipfile.is_zipfile(self.path):
                raise InputError(
                    f"{path}: neither a folder nor a complete zip file; the benchmark's 'path' "
                    "must name one"
                )
            self._zip = zipfile.ZipFile(self.path)

    @cached_property
    def _all(self) -> list[str]:
        if not self._zip:
            return sorted(_files(self.path))
        names = (name for name in self._zip.namelist() if not name.endswith("/"))
        return sorted(name for name in names if not any(map(left_out, PurePosixPath(name).parts)))

    @cached_property
    def names(self) -> list[str]:
        """Sorted; a folder is walked when they are first asked for."""
        return [name for name in self._all if PICTURE.search(name)]

    @cached_property
    def passed_over(self) -> dict[str, int]:
        """How many files of which endings, in folders of pictures, are none that are read."""
        holding = {name.rpartition("/")[0] for name in self.names} - {""}
        return dict(
            Counter(
                PurePosixPath(name).suffix.lower() or "no ending"
                for name in self._all
                if not PICTURE.search(name) and name.rpartition("/")[0] in holding
            ).most_common()
        )

    def read(self, name: str) -> bytes:
        return self._zip.read(name) if self._zip else (self.path / name).read_bytes()

    def size(self, name: str) -> int:
        """Bytes of a file, without reading it."""
        return self._zip.getinfo(name).file_size if self._zip else (self.path / name).stat().st_size


def copies(pictures: Pictures, train: Sequence[str], test: Sequence[str]) -> dict[str, str]:
    """Files of `test` that have the bytes of one of `train` → that one. Only files of equal sizes
    are read.
    """
    sizes = {name: pictures.size(name) for name in {*train, *test}}
    shared = {sizes[name] for name in train} & {sizes[name] for name in test}

    def digests(names: Sequence[str]) -> Iterator[tuple[bytes, str]]:
        for name in names:
            if sizes[name] in shared:
                yield hashlib.sha256(pictures.read(name)).digest(), name

    known = dict(digests(train[::-1]))  # of several, the first stays
    return {name: known[digest] for digest, name in digests(test) if digest in known}


def _percent(found: re.Match) -> str:
    return "".join(f"%{byte:02X}" for byte in found[0].encode("utf-8", "surrogatepass"))


def folder_name(label: str) -> str:
    """The name of a class's folder, which `class_name` turns back into the label.

    What a file system refuses, what hides a folder from the reader, and `_`, which stands for a
    space there, is written as `%` and two hexadecimal digits a byte.

    Raises InputError if the name is longer than file systems allow.
    """
    name = REFUSED.sub(_percent, label)
    if left_out(name) or RESERVED.fullmatch(name):
        name = re.sub("^.", _percent, name)
    if len(name.encode("utf-8", "surrogatepass")) > MOST_NAME_BYTES:
        raise InputError(
            f"the class name '{shorten(label, 60)}' is too long for a folder: {MOST_NAME_BYTES} "
            "bytes are the most; shorten it"
        )
    return name


def class_name(folder: str) -> str:
    """A folder's name as its class's: the label that `folder_name` wrote it for, else `_` is a
    space and all other characters stay.
    """
    try:
        label = unquote(folder, errors="surrogatepass")
        if label != folder and folder_name(label) == folder:
            return label
    except (UnicodeDecodeError, InputError):
        pass
    return folder.replace("_", " ")


def same_words(name: str) -> str:
    """What prompts make of a class name: two names of which it is equal are one prompt, as CLIP's
    tokenizer takes no notice of case, of white space or of how an accent is written.
    """
    return " ".join(unicodedata.normalize("NFC", class_name(name)).split()).casefold()


def check_classes(where: Path | str, names: Iterable[str]) -> None:
    """Raises InputError naming two class names that are one prompt, or one that says nothing to a
    text tower, as the numbers that ImageNet's folders have for names.
    """
    known: dict[str, str] = {}
    for name in sorted(names):
        words = same_words(name)
        if not words or SYNSET.fullmatch(words):
            raise InputError(
                f"{where}: a class is called '{name}', which says nothing to a text tower; rename "
                "its folder (ImageNet and its like have layouts of their own)"
            )
        if known.setdefault(words, name) != name:
            raise InputError(
                f"{where}: the classes '{known[words]}' and '{name}' are one prompt, which cannot "
                "tell them apart; rename or merge them"
            )


def check_depths(where: Path | str, names: Iterable[str]) -> None:
    """Raises InputError if pictures of one part lie at different depths: a folder inside a class
    would be taken for a class, and the class for a domain.
    """
    first: dict[int, str] = {}
    for name in names:
        first.setdefault(name.count("/"), name)
    if len(first) > 1:
        shallow, deep = first[min(first)], first[max(first)]
        raise InputError(
            f"{where}: '{deep}' lies deeper than '{shallow}'; either all classes have a folder of "
            "their domain above them, or none: move the pictures"
        )
