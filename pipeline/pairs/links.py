"""From the URLs of a table to what is asked for: as browsers read them, each once."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import quote, unquote

import idna
import polars as pl

NOT_WEB = "not a http(s) URL"
NOT_VALID = "not a valid URL"

WEB = re.compile(r"(https?):[/\\]*([^/\\?#]*)([^?#]*)(\?[^#]*)?", re.IGNORECASE)
# everything else that is relative is a name in the source's own folder, `photo:1.png` too
ELSEWHERE = re.compile(r"[a-z][a-z0-9+.-]*://|(data|blob|javascript|mailto):", re.IGNORECASE)
CONTROLS = "".join(map(chr, range(33)))
# what browsers send as it stands, beside letters and digits; a `%` is taken for an escape's
IN_PATH, IN_QUERY = "!$%&'()*+,/:;=@[]^|~", "!$%&()*+,/:;=?@[]\\^`{|}~"
NOT_IN_HOST = re.compile(r"[\0-\x20#%/:<>?@\[\\\]^|\x7f]")


def _host(name: str) -> str:
    """The host as it is looked up. Raises ValueError if no host can be called that."""
    if name.startswith("["):
        return f"[{ipaddress.IPv6Address(name.removeprefix('[').removesuffix(']'))}]"
    name = unquote(name)
    if not name.isascii():
        name = idna.encode(name, uts46=True).decode()
    if not name or NOT_IN_HOST.search(name):
        raise ValueError(name)
    return name


def _authority(text: str) -> str:
    """`host:port`, with what stands before an `@`. Raises ValueError if it is none."""
    user, at, place = text.rpartition("@")
    host, colon, port = place.rpartition(":") if re.search(r":[^\]]*$", place) else (place, "", "")
    if port and not (port.isascii() and port.isdigit() and int(port) < 2**16):
        raise ValueError(port)
    return user + at + _host(host) + (colon + port if port else "")


def asked(url: str, base: str | None) -> tuple[str | None, str | None]:
    """(what is asked for, None), or (None, why nothing is).

    Percent-encoded as browsers do: what is encoded already stays, a fragment is not sent.

    Args:
        base: where relative names lead, `http://host:port/`; None: they lead nowhere.
    """
    url = re.sub(r"[\t\r\n]", "", url).strip(CONTROLS)
    if not (web := WEB.match(url)):
        if base is None or ELSEWHERE.match(url):
            return None, NOT_WEB
        return base + quote(url, errors="replace"), None
    scheme, authority, path, query = web.groups(default="")
    try:
        place = _authority(authority)
    except ValueError:  # UnicodeError and idna's own are some
        return None, NOT_VALID
    path = quote(path.replace("\\", "/") or "/", IN_PATH, errors="replace")
    return f"{scheme.lower()}://{place}{path}{quote(query, IN_QUERY, errors='replace')}", None


def plan(captions: pl.DataFrame, base: str | None) -> pl.DataFrame:
    """`captions` (key, caption, url) with what is asked for and why not (`asked`, `error`), and
    the first key that asks for the same (`picture`).
    """
    found = [asked(url, base) for url in captions["url"].to_list()]
    return captions.with_columns(
        asked=pl.Series([f[0] for f in found], dtype=pl.String),
        error=pl.Series([f[1] for f in found], dtype=pl.String),
    ).with_columns(
        picture=pl.when(pl.col("asked").is_not_null()).then(pl.col("key").min().over("asked"))
    )
