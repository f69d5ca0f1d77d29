"""`gram serve`: a page on this machine that names pictures and takes corrections.

Nothing leaves the machine. Whoever asks must have typed the address that is served (no other
page's scripts, no other host's name: `gram.hosts`), and what is handed in is bounded before it is
decoded. All that is answered but the page itself is JSON; what went wrong is its `detail`.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import io
import os
import secrets
import socket
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse, JSONResponse
from PIL import Image
from starlette.concurrency import run_in_threadpool

from gram.collection import label_name
from gram.estimator import PromptClassifier
from gram.hosts import Hosts, place_of
from gram.report import template, thumbnail
from gram.trust import sets
from pipeline.artifacts import replacing
from pipeline.errors import InputError
from pipeline.image_file import TooLarge, Unreadable, identified, open_picture
from pipeline.pictures import PICTURE, folder_name

MOST_BYTES = 20 << 20
MOST_PIXELS = 50_000_000
TOP, NEAR = 3, 3
AT_ONCE = 8  # requests whose pictures are held in memory
SECONDS = 60  # in which a picture must have come
# the ending under which `gram adapt` reads a picture of each format that the page takes
ENDINGS = {
    "JPEG": "jpg",
    "MPO": "jpg",  # a phone's JPEG of several pictures
    "PNG": "png",
    "WEBP": "webp",
    "GIF": "gif",
    "BMP": "bmp",
    "DIB": "bmp",
    "TIFF": "tiff",
    "AVIF": "avif",
    "HEIF": "heic",
}
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def checked(content: bytes) -> Image.Image:
    """The picture; 413 if it would unpack to too many pixels, 415 if it is none."""
    try:
        return open_picture(content, MOST_PIXELS)
    except TooLarge as error:
        raise HTTPException(413, str(error)) from None
    except Unreadable as error:
        raise HTTPException(415, f"not a picture that can be read: {error}") from None


class Answers:
    """What the page asks of a classifier."""

    def __init__(self, model: PromptClassifier, unsure: float) -> None:
        self.model, self.one_at_a_time = model, threading.Lock()
        self.threshold = None if model.scores_ is None else model.threshold(unsure)

    def name(self, content: bytes) -> dict[str, Any]:
        """The likeliest classes, whether it is unsure, and the nearest pictures it learned from."""
        with self.one_at_a_time:  # one unpacked picture in memory, too
            picture = checked(content)
            features = self.model.looked([picture])
        chances = self.model.probabilities(features)[0]
        order = np.argsort(-chances, kind="stable")[:TOP]
        mark = None if self.threshold is None else sets(chances[None], self.threshold)[0]
        nearness = (self.model.features_.float() @ features[0]).numpy()
        return {
            "top": [
                {"label": self.model.names_[k], "probability": float(chances[k])} for k in order
            ],
            "set": None if mark is None else [self.model.names_[k] for k in np.flatnonzero(mark)],
            "near": [self._learned(int(row)) for row in np.argsort(-nearness)[:NEAR]],
        }

    def keep(self, content: bytes, label: str, corrections: Path) -> Path:
        """As `keep`, while no other picture is unpacked."""
        with self.one_at_a_time:
            return keep(content, label, corrections)

    def _learned(self, row: int) -> dict[str, Any]:
        pictures = self.model.collection_
        try:
            small = thumbnail(pictures.picture(row))
        except (InputError, OSError, KeyError):
            small = None  # it is not where it lay any more
        label = label_name(pictures.labels[row])
        return {"label": label, "file": pictures.files[row], "picture": small}


def ending_of(picture: Image.Image) -> str:
    """The ending that a picture's file gets; 415 if `gram adapt` would not read it."""
    ending = ENDINGS.get(picture.format or "", "")
    if not PICTURE.search(f".{ending}"):
        raise HTTPException(415, f"pictures of the format {picture.format} are not kept")
    return ending


def keep(content: bytes, label: str, corrections: Path) -> Path:
    """Files a picture under its class, by its digest; a file that is there stays as it is."""
    checked(content)
    with identified(io.BytesIO(content)) as asked:
        ending = ending_of(asked)
    digest = hashlib.sha256(content).hexdigest()
    folder = corrections / folder_name(label)
    for name in (digest[:16], digest):
        path = folder / f"{name}.{ending}"
        if not os.path.lexists(path):
            with replacing(path) as temporary:
                temporary.write_bytes(content)
            return path
        if path.is_file() and path.read_bytes() == content:
            return path
    raise HTTPException(409, f"{path}: another file is there; move it away")


def check_corrections(folder: Path) -> None:
    """Raises InputError if corrections cannot be written there; nothing is made."""
    there = folder
    while not os.path.lexists(there):
        there = there.parent
    if not there.is_dir():
        raise InputError(f"--corrections: '{there}' is no folder; name another one")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"--corrections: '{there}' cannot be written; name another folder")


async def _body(request: Request) -> bytes:
    """What was handed in; 413 as soon as it is too much, 408 if it does not come."""
    content = bytearray()
    try:
        async with asyncio.timeout(SECONDS):
            async for part in request.stream():
                content += part
                if len(content) > MOST_BYTES:
                    raise HTTPException(413, f"more than {MOST_BYTES >> 20} MiB")
    except TimeoutError:
        raise HTTPException(408, f"the picture did not come within {SECONDS} s") from None
    return bytes(content)


def _guard(request: Request, hosts: Hosts) -> str | None:
    """Why a request is refused: it names another host, or comes from another page."""
    named = request.headers.getlist("host")
    if len(named) != 1 or not hosts.knows(named[0]):
        place = place_of(named[0]) if len(named) == 1 else None
        remedy = f"; if it is meant, `gram serve --allow-host {place[0]}`" if place else ""
        return f"this page is served under another name{remedy}"
    if request.method != "POST":  # nothing else changes or names anything
        return None
    origins = request.headers.getlist("origin")
    if len(origins) != 1 or not hosts.sent_by_page(origins[0], named[0]):
        return "only the page itself may send pictures"
    if request.headers.get("content-type") != "application/octet-stream":
        return "pictures come as application/octet-stream"
    return None


def _wrong(request: Request, error: Exception) -> JSONResponse:
    """What a picture's reader or the file system refuses, or a fault of the server's, in words."""
    if isinstance(error, InputError):
        return JSONResponse({"detail": str(error)}, 422)
    if isinstance(error, OSError):
        reason = f"{error.filename or 'the file system'}: {error.strerror or error}"
        return JSONResponse({"detail": reason}, 507 if error.errno in FULL else 500)
    return JSONResponse({"detail": f"the server failed ({type(error).__name__})"}, 500)


def _headers(nonce: str) -> dict[str, str]:
    """The page runs its own script alone, and asks nobody but this server."""
    policy = (
        f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; "
        "img-src data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
    return {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-store",
    }


def make_app(
    model: PromptClassifier, corrections: Path, hosts: Hosts | Iterable[str], unsure: float = 0.9
) -> FastAPI:
    """The page and its two questions.

    Args:
        hosts: whom requests may name; plain texts are places (`name`, `name:port`) over HTTP.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    answers, at_once = Answers(model, unsure), asyncio.Semaphore(AT_ONCE)
    known = hosts if isinstance(hosts, Hosts) else Hosts.of(hosts)

    @app.middleware("http")
    async def guard(request: Request, call_next: Callable) -> Any:
        if reason := _guard(request, known):
            return JSONResponse({"detail": reason}, 403)
        return await call_next(request)

    for kind in (InputError, OSError, Exception):
        app.add_exception_handler(kind, _wrong)

    @app.api_route("/", methods=["GET", "HEAD"])
    def page() -> HTMLResponse:
        nonce = secrets.token_urlsafe(16)
        shown = template("serve.html.j2").render(
            classes=model.names_, nonce=nonce, most=MOST_BYTES, corrections=corrections
        )
        return HTMLResponse(shown, headers=_headers(nonce))

    @app.post("/name")
    async def name(request: Request) -> dict[str, Any]:
        async with at_once:
            return await run_in_threadpool(answers.name, await _body(request))

    @app.post("/correct")
    async def correct(request: Request, label: str = "") -> dict[str, str]:
        if label not in model.names_:
            raise HTTPException(422, "there is no such class")
        async with at_once:
            content = await _body(request)
            path = await run_in_threadpool(answers.keep, content, label, corrections)
        return {"kept": str(path)}

    return app


def serve(
    model: PromptClassifier,
    corrections: Path,
    hosts: Hosts,
    sockets: list[socket.socket],
    unsure: float,
) -> None:
    """Serves on sockets that listen (`gram.hosts.listening`), until interrupted."""
    import uvicorn

    app = make_app(model, corrections, hosts, unsure)
    settings = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5)
    with suppress(KeyboardInterrupt):
        uvicorn.Server(settings).run(sockets=sockets)
