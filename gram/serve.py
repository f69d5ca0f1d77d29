"""`gram serve`: a page on this machine that names pictures and takes corrections.

Nothing leaves the machine. Whoever asks must have typed the address that is served (no other
page's scripts, no other host's name), and what is handed in is bounded before it is decoded.
"""

from __future__ import annotations

import hashlib
import io
import secrets
import threading
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse, JSONResponse
from PIL import Image
from starlette.concurrency import run_in_threadpool

from gram.estimator import PromptClassifier
from gram.report import template, thumbnail
from gram.trust import sets
from pipeline.artifacts import replacing
from pipeline.errors import InputError
from pipeline.image_file import TooLarge, Unreadable, identified, open_picture
from pipeline.pictures import folder_name

MOST_BYTES = 20 << 20
MOST_PIXELS = 50_000_000
TOP, NEAR = 3, 3


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
        picture = checked(content)
        with self.one_at_a_time:
            features = self.model.looked([picture])
        chances = self.model.probabilities(features)[0]
        order = np.argsort(-chances, kind="stable")[:TOP]
        mark = None if self.threshold is None else sets(chances[None], self.threshold)[0]
        nearness = (self.model.features_.float() @ features[0]).numpy()
        return {
            "top": [
                {"label": str(self.model.classes_[k]), "probability": float(chances[k])}
                for k in order
            ],
            "set": None if mark is None else self.model.classes_[mark].tolist(),
            "near": [self._learned(int(row)) for row in np.argsort(-nearness)[:NEAR]],
        }

    def _learned(self, row: int) -> dict[str, Any]:
        pictures = self.model.collection_
        try:
            small = thumbnail(pictures.picture(row))
        except (InputError, OSError, KeyError):
            small = None  # it is not where it lay any more
        return {"label": pictures.labels[row], "file": pictures.files[row], "picture": small}


def keep(content: bytes, label: str, corrections: Path) -> Path:
    """Files a picture under its class, by its digest, so that none takes another's place."""
    checked(content)
    with identified(io.BytesIO(content)) as asked:
        kind = "jpg" if asked.format == "JPEG" else (asked.format or "png").lower()
    path = corrections / folder_name(label) / f"{hashlib.sha256(content).hexdigest()[:16]}.{kind}"
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return path


async def _body(request: Request) -> bytes:
    """What was handed in; 413 as soon as it is too much."""
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > MOST_BYTES:
            raise HTTPException(413, f"more than {MOST_BYTES >> 20} MiB")
    return bytes(content)


def _guard(request: Request, hosts: set[str]) -> str | None:
    """Why a request is refused: it names another host, or comes from another page."""
    host = request.headers.get("host", "")
    if host not in hosts:
        return "this page is served under another name"
    if request.method == "GET":
        return None
    if request.headers.get("origin") != f"http://{host}":
        return "only the page itself may send pictures"
    if request.headers.get("content-type") != "application/octet-stream":
        return "pictures come as application/octet-stream"
    return None


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
    model: PromptClassifier, corrections: Path, hosts: set[str], unsure: float = 0.9
) -> FastAPI:
    """The page and its two questions, for requests that name one of `hosts` (name:port)."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    answers = Answers(model, unsure)

    @app.middleware("http")
    async def guard(request: Request, call_next: Any) -> Any:
        if reason := _guard(request, hosts):
            return JSONResponse({"detail": reason}, 403)
        return await call_next(request)

    @app.get("/")
    def page() -> HTMLResponse:
        nonce = secrets.token_urlsafe(16)
        shown = template("serve.html.j2").render(
            classes=model.classes_.tolist(), nonce=nonce, most=MOST_BYTES, corrections=corrections
        )
        return HTMLResponse(shown, headers=_headers(nonce))

    @app.post("/name")
    async def name(request: Request) -> dict[str, Any]:
        return await run_in_threadpool(answers.name, await _body(request))

    @app.post("/correct")
    async def correct(request: Request, label: str) -> dict[str, str]:
        if label not in model.classes_.tolist():
            raise HTTPException(422, "there is no such class")
        path = await run_in_threadpool(keep, await _body(request), label, corrections)
        return {"kept": str(path)}

    return app


def serve(model: PromptClassifier, corrections: Path, host: str, port: int, unsure: float) -> None:
    """Serves until interrupted."""
    import uvicorn

    names = {host, "127.0.0.1", "localhost"} if host in ("127.0.0.1", "localhost") else {host}
    hosts = {f"{name}:{port}" for name in names}
    app = make_app(model, corrections, hosts, unsure)
    uvicorn.run(app, host=host, port=port, log_level="warning")
