"""What a zip holds, under the names that the person who packed it gave."""

from __future__ import annotations

import stat
import struct
import zipfile
import zlib
from pathlib import PurePosixPath

from pipeline.errors import quoted

IS_UTF8, IS_ENCRYPTED = 0x800, 0x1
UNICODE_PATH = 0x7075  # Info-ZIP's extra field with the name in UTF-8


def _unicode_path(entry: zipfile.ZipInfo, raw: bytes) -> str | None:
    """The name in Info-ZIP's field, if it is of this entry's name."""
    extra = entry.extra
    while len(extra) >= 4:
        kind, size = struct.unpack("<HH", extra[:4])
        if kind == UNICODE_PATH and size > 5 and extra[4] == 1:
            (checksum,) = struct.unpack("<L", extra[5:9])
            if checksum == zlib.crc32(raw):
                return extra[9 : 4 + size].decode("utf-8", "replace")
        extra = extra[4 + size :]
    return None


def name_of(entry: zipfile.ZipInfo) -> tuple[str, bool]:
    """An entry's name with `/` between folders, and whether its encoding is certain.

    Without the flag for UTF-8 the format says cp437, but macOS and others write UTF-8 all the same.
    """
    name, is_certain = entry.orig_filename, True
    if not (entry.flag_bits & IS_UTF8 or name.isascii()):
        raw = name.encode("cp437")
        told = _unicode_path(entry, raw)
        try:
            name = told or raw.decode("utf-8")
        except UnicodeDecodeError:
            is_certain = False
    return name.replace("\\", "/"), is_certain


def _wrong_with(entry: zipfile.ZipInfo, name: str) -> str | None:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or ":" in path.parts[0] or "\0" in name:
        return "leads out of the zip; pack the folder anew without such paths"
    if stat.S_ISLNK(entry.external_attr >> 16):
        return "is a link; pack the file that it leads to"
    if entry.flag_bits & IS_ENCRYPTED:
        return "is encrypted; pack the folder anew without a password"
    return None


def entries_of(archive: zipfile.ZipFile) -> tuple[dict[str, zipfile.ZipInfo], list[str], list[str]]:
    """(name → entry of every file and, ending in `/`, folder; what is wrong; what to know)."""
    found: dict[str, zipfile.ZipInfo] = {}
    problems, uncertain = [], []
    for entry in archive.infolist():
        name, is_certain = name_of(entry)
        if reason := _wrong_with(entry, name or "."):
            problems.append(f"{archive.filename}: {quoted(name)} {reason}")
        elif name in found and not name.endswith("/"):
            problems.append(
                f"{archive.filename}: {quoted(name)} is in the zip twice; pack the folder anew"
            )
        found[name] = entry
        if not is_certain:
            uncertain.append(name)
    notes = []
    if uncertain:
        notes.append(
            f"{archive.filename}: {len(uncertain)} names are not in UTF-8 and were read as cp437, "
            f"the first {quoted(uncertain[0])}; pack the folder anew if that is not its name"
        )
    return found, problems, notes
