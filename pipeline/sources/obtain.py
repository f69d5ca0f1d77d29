"""Fetches the source's table, if the parameters say from where."""

from __future__ import annotations

import sys
from http.client import HTTPException
from pathlib import Path

from pipeline.errors import InputError
from pipeline.sources.params import Obtain


def obtain(path: Path, settings: Obtain) -> None:
    """Fetches `settings.url` into `path`, which appears only when it is whole and has the right SHA-256.

    Raises InputError if the server does not give it, or if the sum is another one, naming that.
    """
    from torch.hub import download_url_to_file  # seconds to import, and rarely needed

    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        download_url_to_file(settings.url, str(path), hash_prefix=settings.sha256, progress=sys.stderr.isatty())
    except RuntimeError as error:
        raise InputError(f"{settings.url}: {error}; nothing was kept. If you trust what was sent, put its sum into 'source.obtain.sha256'") from None
    except (OSError, HTTPException) as error:
        raise InputError(f"{settings.url}: cannot be fetched ({error}); put the table at {path} by hand, or mend 'source.obtain.url'") from None
