"""img2dataset in a process of its own that asks no private address, takes no picture for what it is
not, and ends when the stage that started it ends.

    python -m pipeline.pairs.fetch --url_list=…   (img2dataset's options)

img2dataset starts its workers anew, and each imports this module before it fetches anything; Ray's
workers call `guard` before they take a task, and take none if that fails. What is allowed comes in
the environment: FETCH_ALLOWED is "*" or host:port pairs with spaces between them.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
import threading
import time
import urllib.request
from contextlib import nullcontext
from urllib.parse import urlsplit

from pipeline.engine import cluster

ALLOWED = "FETCH_ALLOWED"
LOOK_EVERY = 0.5  # seconds
REFUSED = "private address refused"
# 150 MB decoded; up to 3 GB where there is transparency, which img2dataset blends in doubles
MAX_PIXELS = 50_000_000


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


def check_pictures(cv2) -> None:
    """From now on, `cv2.imdecode` gives no picture of more than MAX_PIXELS, and the others with 8
    bits per channel.

    OpenCV writes 16 bits into a JPEG by cutting off at 255, which makes next to everything white.
    """
    decode = cv2.imdecode

    def checked(content, flags):
        try:
            picture = decode(content, flags)
        except cv2.error as error:
            raise ValueError(
                f"more than {MAX_PIXELS // 10**6} million pixels"
                if "CV_IO_MAX_IMAGE" in str(error)
                else error.err
            ) from None
        if picture is not None and picture.dtype == "uint16":
            return (picture >> 8).astype("uint8")
        return picture if picture is not None and picture.dtype == "uint8" else None

    cv2.imdecode = checked


def end_with(parent: int) -> None:
    """Ends this process as soon as its parent is another one: a killed stage leaves no downloads
    behind.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK_EVERY)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


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
    import cv2

    check_pictures(cv2)


RAY = "--distributor=ray"

if __name__ in ("__main__", "__mp_main__"):  # the second is its name in the workers
    end_with(os.getppid())
    # else this process fetches nothing itself, and Ray's own services are private addresses
    if RAY not in sys.argv:
        guard()

if __name__ == "__main__":
    with (
        cluster({ALLOWED: os.environ[ALLOWED]}, "pipeline.pairs.fetch.guard")
        if RAY in sys.argv
        else nullcontext()
    ):
        from img2dataset.main import main

        main()
