"""What a folder or zip of pictures holds: one reader, one idea of a picture, for every layout."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path, PurePosixPath
from textwrap import shorten
from urllib.parse import unquote

from pipeline.errors import InputError, quoted
from pipeline.image_file import known
from pipeline.zips import entries_of

PICTURE = re.compile(rf"\.({'|'.join(chain(*known().values()))})$", re.IGNORECASE)
OTHER_PICTURE = re.compile(
    r"\.(hei[cf]|svg|eps|ps|psd|jxl|raw|dng|cr[23]|nef|arw|orf|rw2|raf|ico|tga|p[pgbn]m|jp[2fx]|exr|hdr"
    r"|xcf)$",
    re.IGNORECASE,
)
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


def _walk(folder: Path, prefix: str = "", above: frozenset = frozenset()) -> Iterator[str]:
    """Relative paths of the files of a folder, and of its folders with a `/` at the end. Links are
    followed, but never into a folder that they lie in.

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
            yield f"{prefix}{entry.name}/"
            yield from _walk(Path(entry.path), f"{prefix}{entry.name}/", above | {here})
        elif entry.is_file():
            yield prefix + entry.name
        elif entry.is_symlink():
            raise InputError(f"{entry.path}: a link that leads nowhere; mend or remove it")


def _above(name: str) -> str:
    """The folder of a path, "" for the top."""
    return name.rstrip("/").rpartition("/")[0]


class Pictures:
    """The picture files of a folder or zip: their relative paths, and their bytes.

    Attributes:
        notes: what a person should know of how it was read; readers of layouts add theirs.
        problems: what is wrong with a zip's entries; `names` raises the first.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.notes: list[str] = []
        self.problems: list[str] = []
        self._zip = None
        self._entries: dict[str, zipfile.ZipInfo] = {}
        if not self.path.is_dir():
            if not zipfile.is_zipfile(self.path):
                raise InputError(
                    f"{path}: neither a folder nor a complete zip file; the benchmark's 'path' "
                    "must name one"
                )
            self._zip = zipfile.ZipFile(self.path)
            self._entries, self.problems, self.notes = entries_of(self._zip)

    @cached_property
    def _all(self) -> list[str]:
        if self.problems:
            raise InputError(self.problems[0])
        if not self._zip:
            return sorted(_walk(self.path))
        return sorted(
            name for name in self._entries if not any(map(left_out, PurePosixPath(name).parts))
        )

    @cached_property
    def names(self) -> list[str]:
        """Sorted; a folder is walked when they are first asked for."""
        return [name for name in self._all if PICTURE.search(name)]

    @cached_property
    def others(self) -> list[str]:
        """The files that are no pictures, sorted."""
        return [n for n in self._all if not n.endswith("/") and not PICTURE.search(n)]

    @cached_property
    def passed_over(self) -> dict[str, int]:
        """How many files of which endings are none that are read: all in folders that hold
        pictures, and elsewhere those that are pictures of another kind.
        """
        holding = {_above(name) for name in self.names}
        return dict(
            Counter(
                PurePosixPath(name).suffix.lower() or "no ending"
                for name in self.others
                if _above(name) in holding or OTHER_PICTURE.search(name)
            ).most_common()
        )

    @cached_property
    def empty_folders(self) -> list[str]:
        """Folders beside those that hold pictures, in which there is none."""
        holding = {_above(name) for name in self.names}
        beside = {_above(folder) for folder in holding if folder}
        with_pictures = {str(above) for name in self.names for above in PurePosixPath(name).parents}
        folders = {name.rstrip("/") for name in self._all if name.endswith("/")}
        folders |= {_above(name) for name in self._all} - {""}
        return sorted(f for f in folders if _above(f) in beside and f not in with_pictures)

    def top_folder(self, fits: Callable[[str], bool]) -> str:
        """The one folder (with its `/`) in which a zip has all its pictures, as `zip -r` and the
        like pack it, if what lies in it fits the layout and as it stands nothing does; else "".
        """
        tops = {name.partition("/")[0] for name in self.names}
        inside = [name.partition("/")[2] for name in self.names]
        if (
            not self._zip
            or len(tops) != 1
            or any(map(fits, self.names))
            or not all(map(fits, inside))
        ):
            return ""
        (top,) = tops
        self.notes.append(f"{self.path}: was read from the folder '{top}' inside")
        return f"{top}/"

    def read(self, name: str) -> bytes:
        return self._zip.read(self._entries[name]) if self._zip else (self.path / name).read_bytes()

    def size(self, name: str) -> int:
        """Bytes of a file, without reading it."""
        return self._entries[name].file_size if self._zip else (self.path / name).stat().st_size


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


def check_spellings(where: Path | str, folders: Iterable[str]) -> None:
    """Raises InputError naming two folders that are one class, as `_` is a space: `big_cat` and
    `big cat`.
    """
    known: dict[str, str] = {}
    for folder in sorted(set(folders)):
        first = known.setdefault(class_name(folder), folder)
        if first != folder:
            raise InputError(
                f"{where}: the folders {quoted(first)} and {quoted(folder)} are one class, "
                f"{quoted(class_name(folder))}; merge them, or rename one"
            )


def lines_in(content: bytes, where: Path | str) -> list[str]:
    """The lines of a text file in UTF-8, with or without a byte-order mark; what some count as
    line ends besides (U+2028, form feeds) is left in them.

    Raises InputError naming the first line that is no UTF-8.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise InputError(
            f"{where}: is no UTF-8 text (line {line}: {error.reason}); save it as UTF-8"
        ) from None
    lines = re.split(r"\r\n|\r|\n", text)
    return lines[:-1] if not lines[-1] else lines


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
