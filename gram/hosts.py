"""Who may ask a page: the host names that a request may name, and the sockets that it is served on.

A page of another site can send requests to this machine, and its owner can let its host name lead
here after it was opened (DNS rebinding). A browser says truthfully which host name it asked for and
which page sent the request, so both are compared with names that are known.
"""

from __future__ import annotations

import errno
import ipaddress
import re
import socket
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

import psutil

from pipeline.errors import InputError

LOOPBACK = ("localhost", "127.0.0.1", "::1")
DEFAULT_PORTS = {"http": 80, "https": 443}
AUTHORITY = re.compile(
    r"(?:\[(?P<six>[0-9a-f:.]+)(?:%[a-z0-9._~-]+)?\]|(?P<name>[a-z0-9_][a-z0-9._-]*))"
    r"(?::(?P<port>[0-9]{1,5}))?"
)

Place = tuple[str, int | None]  # a host name or address, and a port if one is said


def place_of(text: str) -> Place | None:
    """`NAME`, `NAME:PORT`, `[ADDRESS]` or `[ADDRESS]:PORT` in one spelling; None for what is none.

    Case, a dot at the end and an IPv6 scope do not count.
    """
    found = AUTHORITY.fullmatch(text.lower())
    if not found:
        return None
    port = None if found["port"] is None else int(found["port"])
    if found["name"]:
        return found["name"].removesuffix("."), port
    try:
        return ipaddress.IPv6Address(found["six"]).compressed, port
    except ValueError:
        return None


def given_place(text: str) -> Place:
    """The place that a person names; an IPv6 address needs no brackets.

    Raises InputError for what is no name or address, with or without a port.
    """
    with suppress(ValueError):
        text = f"[{ipaddress.IPv6Address(text.partition('%')[0])}]"
    try:
        text = text if text.isascii() else text.encode("idna").decode()
    except UnicodeError:
        text = ""
    place = place_of(text)
    if place is None:
        raise InputError(
            "--allow-host takes one host name or address, with or without a port (pictures.lan, "
            "192.168.1.7, pictures.example:8443); no wildcard, no scheme, no path"
        )
    return place


@dataclass(frozen=True)
class Hosts:
    """The places that requests may name; one without a port is allowed at every port.

    Attributes:
        own: of this machine, where the page is served over plain HTTP.
        allowed: those that a person vouches for, also behind a proxy that speaks TLS.
    """

    own: frozenset[Place]
    allowed: frozenset[Place] = frozenset()

    @classmethod
    def of(cls, places: Iterable[str]) -> Hosts:
        """Places over plain HTTP, as `name` or `name:port`."""
        return cls(frozenset(filter(None, map(place_of, places))))

    @staticmethod
    def _among(place: Place, places: frozenset[Place]) -> bool:
        name, port = place
        ports = DEFAULT_PORTS.values() if port is None else (port,)
        return (name, None) in places or any((name, p) in places for p in ports)

    def knows(self, host: str) -> bool:
        """Whether a Host header names the page."""
        place = place_of(host)
        return place is not None and self._among(place, self.own | self.allowed)

    def sent_by_page(self, origin: str, host: str) -> bool:
        """Whether a request's Origin is the page that is served under its Host header.

        Over TLS, which ends in a proxy, only a vouched name will do; where the proxy puts another
        name into the Host header, the vouched one itself.
        """
        scheme, _, rest = origin.partition("://")
        page, asked = place_of(rest), place_of(host)
        if page is None or asked is None or scheme not in DEFAULT_PORTS:
            return False
        default = DEFAULT_PORTS[scheme]
        same = (page[0], page[1] or default) == (asked[0], asked[1] or default)
        if scheme == "http":
            return same
        if page[0] == asked[0]:
            return same and self._among(page, self.allowed)
        return page in self.allowed


def is_loopback(host: str) -> bool:
    """Whether a host is this machine as nobody else can reach it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def own_names(host: str) -> list[str]:
    """The names and addresses under which a page that is served on `host` is asked for: on a
    loopback address the loopback's, else all of this machine.
    """
    names = [host, *LOOPBACK]
    if not is_loopback(host):
        own = socket.gethostname()
        addresses = [
            address.address.partition("%")[0]
            for of_interface in psutil.net_if_addrs().values()
            for address in of_interface
            if address.family in (socket.AF_INET, socket.AF_INET6)
        ]
        names += [own, socket.getfqdn(), f"{own.partition('.')[0]}.local", *addresses]
    return list(dict.fromkeys(name.lower() for name in names))


def hosts_for(host: str, allowed: Iterable[str] = ()) -> Hosts:
    """Who may ask a page that is served on `host`; InputError as `given_place`."""
    own = (place_of(f"[{name}]" if ":" in name else name) for name in own_names(host))
    return Hosts(frozenset(place for place in own if place), frozenset(map(given_place, allowed)))


def address_of(host: str, port: int) -> str:
    """The address of the page, as a browser takes it."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _reason(error: OSError, host: str, port: int) -> str:
    if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        return f"--host: '{host}' is no name or address of this machine; take 127.0.0.1 or 0.0.0.0"
    if error.errno == errno.EADDRINUSE:
        return f"port {port} of {host} is taken by another program; choose another --port"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"port {port} needs rights that you do not have; choose a --port from 1024 on"
    return f"{host}, port {port}: cannot be served on ({error.strerror or error})"


def listening(host: str, port: int) -> list[socket.socket]:
    """Sockets that listen on every address of a host; port 0 is any that is free.

    Raises InputError naming the host or port if it is taken, not allowed, or not this machine's.
    """
    opened: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        for family, *_, address in dict.fromkeys(found):
            both = host == "::" and socket.has_dualstack_ipv6()
            try:
                opened.append(
                    socket.create_server(
                        (address[0], port, *address[2:]), family=family, dualstack_ipv6=both
                    )
                )
            except OSError as error:  # a name may stand for an address that is switched off
                if error.errno != errno.EADDRNOTAVAIL or (len(found) == 1):
                    raise
            else:
                port = opened[0].getsockname()[1]
        if not opened:
            raise OSError(errno.EADDRNOTAVAIL, "no address")
    except (OSError, UnicodeError) as error:
        for one in opened:
            one.close()
        known = error if isinstance(error, OSError) else socket.gaierror()
        raise InputError(_reason(known, host, port)) from None
    return opened
