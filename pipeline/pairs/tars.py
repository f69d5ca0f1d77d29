"""Reads tar archives and notices when one is cut off, wherever the cut is."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from pipeline.errors import InputError


def read_at(path: Path, offset: int, size: int) -> bytes:
    """A member's content by its place in the archive, from any thread. Raises InputError naming
    an archive that ends before.
    """
    with open(path, "rb") as tar:
        tar.seek(offset)
        content = tar.read(size)
    if len(content) < size:
        raise _not_complete(path, "it ends inside a file")
    return content


def _not_complete(path: Path, why: object) -> InputError:
    return InputError(
        f"{path}: not a complete tar file ({why}); delete it, then obtain it again or run `dvc "
        "repro`"
    )


def tar_files(path: Path) -> Iterator[tuple[tarfile.TarInfo, IO[bytes]]]:
    """(member, its content to be read) of every file in an uncompressed archive, in the archive's
    order. A hard link to an earlier file has that one's place and content; its `linkname` says
    whose.

    Raises InputError naming the archive if it ends within a file or before the block of zeros that
    closes it. tarfile itself takes an end between two blocks, and damage behind the first file, for
    the end of the archive.
    """
    try:
        with tarfile.open(path, "r:") as tar:
            size = os.stat(path).st_size
            places: dict[str, tuple[int, int]] = {}
            for member in tar:
                if member.offset_data + member.size > size:
                    raise tarfile.ReadError(f"it ends within {member.name}")
                if member.islnk() and member.linkname in places:
                    member.type = tarfile.REGTYPE
                    member.offset_data, member.size = places[member.linkname]
                if member.isfile() and (content := tar.extractfile(member)):
                    places[member.name] = member.offset_data, member.size
                    yield member, content
            tar.fileobj.seek(tar.offset)
            if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError("it is cut off or damaged")
    except tarfile.TarError as error:
        raise _not_complete(path, error) from None
