"""Serves a folder (tars in it included) or zip of pictures over loopback HTTP, so that local
pictures travel the road of web pictures.
"""

from __future__ import annotations

import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from pipeline.errors import InputError
from pipeline.pairs.tars import read_at, tar_files
from pipeline.zips import entries_of


def _tar_opener() -> Callable[[Path, str], bytes | None]:
    """(tar, member) → content, or None if the tar has no such file. Nothing is unpacked, so a
    member's name leads nowhere.
    """
    tars: dict[Path, dict[str, tuple[int, int]]] = {}
    lock = threading.Lock()

    def from_tar(path: Path, member: str) -> bytes | None:
        with lock:
            if path not in tars:
                tars[path] = {m.name: (m.offset_data, m.size) for m, _ in tar_files(path)}
        if member not in tars[path]:
            return None
        return read_at(path, *tars[path][member])

    return from_tar


def _opener(root: Path) -> Callable[[str], bytes | None]:
    """name → content, or None if there is no such file inside `root`."""
    if root.is_dir():
        read_member = _tar_opener()

        def file(name: str) -> Path | None:
            # links were laid by whoever owns the folder, and are followed; URLs lead nowhere else
            inside = ".." not in PurePosixPath(name).parts
            return root / name if inside and (root / name).is_file() else None

        def from_folder(name: str) -> bytes | None:
            if found := file(name):
                return found.read_bytes()
            shard, inside, member = name.partition(".tar/")
            found = file(f"{shard}.tar") if inside else None
            return read_member(found, member) if found else None

        return from_folder
    if not zipfile.is_zipfile(root):
        raise InputError(
            f"{root}: neither a folder nor a complete zip file; 'source.pictures' must name one"
        )
    archive, lock = zipfile.ZipFile(root), threading.Lock()
    entries = entries_of(archive)[0]

    def from_zip(name: str) -> bytes | None:
        with lock:
            return archive.read(entries[name]) if name in entries else None

    return from_zip


@contextmanager
def serve(root: Path | str) -> Iterator[str]:
    """Yields the base URL (`http://127.0.0.1:PORT/`) while the site is up; the port is free by
    choice of the system.
    """
    open_file = _opener(Path(root))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = open_file(unquote(urlsplit(self.path).path).lstrip("/"))
            self.send_response(200 if content is not None else 404)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        # the default of 5 resets connections as soon as a downloader hurries
        request_queue_size = 1024

        def handle_error(self, *_: object) -> None:
            """A client that goes away is the client's affair: its own log says why."""

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
