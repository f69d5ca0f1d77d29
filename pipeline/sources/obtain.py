"""Fetches files of which the checksum is known: the source's table, if the parameters say from
where, and others alike.
"""

from __future__ import annotations

import hashlib
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from tqdm import tqdm

from pipeline.errors import InputError
from pipeline.pairs.links import asked
from pipeline.sources.params import Obtain

CHUNK = 1 << 20
TIMEOUT = 60  # seconds without a byte


def _receive(url: str, part: Path) -> None:
    """Appends to `part` what it lacks of `url`; a server that cannot go on from there begins
    anew.
    """
    there = part.stat().st_size if part.exists() else 0
    request = Request(
        url,
        headers={"User-Agent": "gram-pipeline"} | ({"Range": f"bytes={there}-"} if there else {}),
    )
    with urlopen(request, timeout=TIMEOUT) as response:
        there = there if response.status == 206 else 0
        length = response.headers["Content-Length"]
        total = int(length) + there if length else None
        with (
            open(part, "ab" if there else "wb") as out,
            tqdm(
                desc=part.name,
                initial=there,
                total=total,
                unit="B",
                unit_scale=True,
                disable=None,
                leave=False,
            ) as bar,
        ):
            while chunk := response.read(CHUNK):
                out.write(chunk)
                bar.update(len(chunk))
            if total is not None and out.tell() < total:
                raise ConnectionError(
                    f"the connection broke after {out.tell()} of {total} bytes; the next try goes "
                    "on from there"
                )


def download(url: str, path: Path, checksum: str) -> None:
    """Fetches `url` into `path`, which appears only when it is whole and has the `checksum`,
    "md5:…" or "sha256:…".

    What came before a connection broke waits beside it in a hidden file, from which the next call
    goes on.

    Raises OSError or HTTPException if the server does not give it, ValueError if the sum is another
    one; then nothing is kept.
    """
    algorithm, _, expected = checksum.partition(":")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{expected[:8]}.part")
    try:
        _receive(url, part)
    except HTTPError as error:
        if error.code != 416 or not part.exists():  # 416: nothing is left to be sent
            raise
    with open(part, "rb") as file:
        found = hashlib.file_digest(file, algorithm).hexdigest()
    if found != expected:
        part.unlink()
        raise ValueError(
            f'the {algorithm} sum is another one (expected "{expected}", got "{found}")'
        )
    part.replace(path)


def obtain(path: Path, settings: Obtain) -> None:
    """Fetches `settings.url` into `path`, which appears only when it is whole and has the right
    SHA-256.

    Raises InputError if the server does not give it, or if the sum is another one, naming that.
    """
    url, wrong = asked(settings.url, None)
    if url is None:
        raise InputError(f"{settings.url}: {wrong}; mend 'source.obtain.url'")
    try:
        download(url, path, f"sha256:{settings.sha256}")
    except ValueError as error:
        raise InputError(
            f"{settings.url}: {error}; nothing was kept. If you trust what was sent, put its sum "
            "into 'source.obtain.sha256'"
        ) from None
    except (OSError, HTTPException) as error:
        raise InputError(
            f"{settings.url}: cannot be fetched ({error}); put the table at {path} by hand, or "
            "mend 'source.obtain.url'"
        ) from None
