"""img2dataset in a process of its own that asks no private address, takes no picture for what it is
not, and ends when the stage that started it ends.

    python -m pipeline.pairs.fetch --url_list=…   (img2dataset's options)

img2dataset starts its workers anew, and each imports this module before it fetches anything; Ray's
workers call `guard` before they take a task, and take none if that fails. What is allowed comes in
the environment: FETCH_ALLOWED is "*" or host:port pairs with spaces between them, FETCH_SECONDS and
FETCH_MEGABYTES what a picture may take, FETCH_BEAT a file to touch for every picture.
"""

from __future__ import annotations

import http.client
import io
import ipaddress
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from importlib import import_module
from multiprocessing.context import SpawnContext
from pathlib import Path
from types import ModuleType
from urllib.parse import urlsplit

import numpy as np

from pipeline.engine import cluster
from pipeline.image_file import TooLarge, Unreadable, identified, open_picture
from pipeline.upright import orientation

ALLOWED = "FETCH_ALLOWED"
SECONDS, MEGABYTES, BEAT = "FETCH_SECONDS", "FETCH_MEGABYTES", "FETCH_BEAT"
LOOK_EVERY = 0.5  # seconds
REFUSED = "private address refused"
MAX_PIXELS = 50_000_000  # 150 MB decoded
TOO_MANY = f"more than {MAX_PIXELS // 10**6} million pixels"
JPEG = b"\xff\xd8\xff"
HEADERS = 2**16  # bytes that may come with a picture


def is_private(address: str) -> bool:
    """Loopback, link-local and every other address that is not of the public internet."""
    found = ipaddress.ip_address(address.partition("%")[0])
    return not (getattr(found, "ipv4_mapped", None) or found).is_global


def refuse_private_addresses(allowed: set[str]) -> None:
    """From now on, names of this process that lead to private addresses cannot be resolved;
    `allowed` ones (host:port) can.

    Every connection of urllib resolves its host, after a redirect too, and connects to the very
    address that was looked at.
    """
    resolve = socket.getaddrinfo

    def guarded(host, port, *rest, **options):
        found = resolve(host, port, *rest, **options)
        if f"{host}:{port}" in allowed:
            return found
        public = [entry for entry in found if not is_private(str(entry[4][0]))]
        if not public:
            raise OSError(REFUSED)
        return public

    socket.getaddrinfo = guarded


class _Bounded(io.RawIOBase):
    """What a server sends, up to `most` bytes and until the clock says `until`."""

    def __init__(self, raw: io.RawIOBase, connection: socket.socket, until: float, most: float):
        self.raw, self.connection, self.until, self.left = raw, connection, until, most

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        seconds = self.until - time.monotonic()
        if seconds <= 0:
            raise TimeoutError(TOO_LONG)
        patience = self.connection.gettimeout()
        self.connection.settimeout(min(seconds, patience or seconds))
        try:
            count = self.raw.readinto(buffer)
        except TimeoutError:
            if time.monotonic() < self.until:
                raise
            raise TimeoutError(TOO_LONG) from None
        self.left -= count or 0
        if self.left < 0:
            raise ValueError(TOO_LARGE)
        return count

    def close(self) -> None:
        self.raw.close()
        super().close()


TOO_LONG, TOO_LARGE = "took longer than 'download.deadline'", "larger than 'download.max_megabytes'"


def limit_pictures(downloader, seconds: float, most: float, beat: Path | None = None) -> None:
    """From now on img2dataset's `downloader` gives up a picture after `seconds`, redirects and
    retries included, or `most` bytes, whatever the server sends; `beat` is touched for each.
    """
    here = threading.local()

    class Response(http.client.HTTPResponse):
        def __init__(self, connection, *rest, **options):
            super().__init__(connection, *rest, **options)
            if (until := getattr(here, "until", None)) is not None:
                bounded = _Bounded(self.fp.detach(), connection, until, most + HEADERS)
                self.fp = io.BufferedReader(bounded)

        def begin(self) -> None:
            super().begin()
            # memory for all that is announced would be taken at once
            if getattr(here, "until", None) is not None and (self.length or 0) > most:
                raise ValueError(TOO_LARGE)

    once, fetch = downloader.download_image, downloader.download_image_with_retry

    def in_time(row, timeout, *rest):
        seconds_left = here.until - time.monotonic()
        if seconds_left <= 0:
            return row[0], None, TOO_LONG
        return once(row, min(timeout, seconds_left), *rest)

    def watched(row, **options):
        here.until = time.monotonic() + seconds
        try:
            return fetch(row, **options)
        finally:
            here.until = None
            if beat:
                os.utime(beat)

    http.client.HTTPConnection.response_class = Response
    downloader.download_image, downloader.download_image_with_retry = in_time, watched


def lying(content: bytes) -> int:
    """EXIF's orientation of a picture as OpenCV decodes it: it heeds the note of a TIFF alone."""
    try:
        with identified(io.BytesIO(content)) as picture:
            if picture.format == "PNG" and b"eXIf" in content:
                picture.load()  # the note may come last
            return 1 if picture.format == "TIFF" else orientation(picture)
    except Exception:  # PIL raises many kinds; whether it is a picture, OpenCV says
        return 1


def upright(pixels, lies: int):
    """(h, w, …) pixels turned and mirrored as EXIF's orientation asks for."""
    if lies in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if lies in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if lies in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def in_opencv_s_order(content: bytes):
    """(h, w, 3) blue, green, red of what `open_picture` makes of a file; None if it is no picture.

    Raises ValueError for more than MAX_PIXELS.
    """
    try:
        picture = open_picture(content, MAX_PIXELS)
    except TooLarge:
        raise ValueError(TOO_MANY) from None
    except Unreadable:
        return None
    return np.asarray(picture)[..., ::-1].copy()


def check_pictures(cv2, resizer) -> None:
    """From now on, `cv2.imdecode` gives upright pictures of the formats that are read anywhere
    here, none of more than MAX_PIXELS; and img2dataset's `resizer` keeps no file that lies on its
    side.

    OpenCV decodes JPEG alone, faster than Pillow. Of others it gives 16 bits, which it cuts off at
    255 when it writes a JPEG, and not all that is transparent, or multiplied by alpha.
    """
    decode, kind = cv2.imdecode, resizer.imghdr.what

    def checked(content, flags):
        if not len(content):
            raise ValueError("the file is empty")
        file = bytes(content)
        if not file.startswith(JPEG):
            return in_opencv_s_order(file)
        try:
            picture = decode(content, flags)
        except cv2.error as error:
            many = "CV_IO_MAX_IMAGE" in str(error)
            raise ValueError(TOO_MANY if many else "Image decoding error") from None
        if picture is None:
            return None
        turned = upright(picture, lying(file))
        return picture if turned is picture else turned.copy()

    def what(stream):
        found = kind(stream)
        stream.seek(0)
        return found if lying(stream.read()) == 1 else None  # to be written anew

    cv2.imdecode, resizer.imghdr.what = checked, what


def end_with(parent: int) -> None:
    """Ends this process as soon as its parent is another one: a killed stage leaves no downloads
    behind.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK_EVERY)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def leave_out_wandb() -> None:
    """img2dataset imports wandb and, as it is asked to, never uses it; its import leaves two
    folders in the temporary directory of every process.
    """
    sys.modules.setdefault("wandb", ModuleType("wandb"))


def guard() -> None:
    """From now on this process asks only what ALLOWED and the proxies of the environment say,
    and takes pictures as `check_pictures` does.
    """
    if (names := os.environ[ALLOWED]) != "*":
        proxies = {
            urlsplit(url).netloc.rpartition("@")[2] for url in urllib.request.getproxies().values()
        }
        refuse_private_addresses(set(names.split()) | proxies)
    # OpenCV looks once, when it is imported
    os.environ["OPENCV_IO_MAX_IMAGE_PIXELS"] = str(MAX_PIXELS)
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    leave_out_wandb()
    import cv2
    from img2dataset import downloader, resizer

    check_pictures(cv2, resizer)
    limit_pictures(
        downloader,
        float(os.environ.get(SECONDS, "inf")),
        float(os.environ.get(MEGABYTES, "inf")) * 10**6,
        Path(os.environ[BEAT]) if BEAT in os.environ else None,
    )


class Workers(SpawnContext):
    """Processes that are remembered, so that the end of one is not missed: multiprocessing's pool
    starts another, and waits for ever for what the lost one had under way.
    """

    def __init__(self) -> None:
        self.started: list = []

    def Process(self, *args, **options):  # type: ignore[override]
        process = SpawnContext.Process(*args, **options)
        self.started.append(process)
        return process

    def lost(self) -> str | None:
        for process in self.started:
            if code := process.exitcode:
                how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
                memory = ", as when memory runs out" if -code == signal.SIGKILL else ""
                return f"a download process ended before its time ({how}{memory})"
        return None


def distribute(processes: int, download: Callable, shards: Iterable, _: int, retries: int) -> None:
    """Instead of img2dataset's own distributor: ends this process when a worker is lost."""
    from img2dataset.distributor import retrier

    context = Workers()
    with context.Pool(processes, maxtasksperchild=5) as pool:

        def run(todo: Iterable) -> list:
            failed, results = [], pool.imap_unordered(download, todo)
            while True:
                try:
                    done, shard = results.next(timeout=LOOK_EVERY)
                except StopIteration:
                    return failed
                except multiprocessing.TimeoutError:
                    if lost := context.lost():
                        print(lost, file=sys.stderr, flush=True)
                        os._exit(1)
                    continue
                if not done:
                    failed.append(shard)

        retrier(run, run(shards), retries)


RAY = "--distributor=ray"

if __name__ in ("__main__", "__mp_main__"):  # the second is its name in the workers
    end_with(os.getppid())
    leave_out_wandb()
    # else this process fetches nothing itself, and Ray's own services are private addresses
    if RAY not in sys.argv:
        guard()

if __name__ == "__main__":
    told = {name: os.environ[name] for name in (ALLOWED, SECONDS, MEGABYTES)}
    with cluster(told, "pipeline.pairs.fetch.guard") if RAY in sys.argv else nullcontext():
        program = import_module("img2dataset.main")  # the package gives its function of that name
        vars(program)["multiprocessing_distributor"] = distribute
        program.main()
