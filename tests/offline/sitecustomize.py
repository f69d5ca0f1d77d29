"""For processes whose PYTHONPATH has this folder: no connection leads out of this machine, and each
that was tried is noted in the file that OUTSIDE names.
"""

import ipaddress
import os
import socket
import sys

connect, resolve = socket.socket.connect, socket.getaddrinfo


def refuse(place):
    with open(os.environ["OUTSIDE"], "a") as log:
        log.write(f"{' '.join(sys.argv)}: {place}\n")
    raise OSError(f"{place} is outside this machine")


def inside(host):
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host in ("localhost", None, "")


def guarded_connect(self, address):
    if self.family in (socket.AF_INET, socket.AF_INET6) and not inside(address[0]):
        refuse(address[0])
    return connect(self, address)


def guarded_resolve(host, *rest, **options):
    name = host.decode() if isinstance(host, bytes) else host
    if not inside(name) and name != socket.gethostname():
        refuse(name)
    return resolve(host, *rest, **options)


if "OUTSIDE" in os.environ:
    socket.socket.connect, socket.getaddrinfo = guarded_connect, guarded_resolve
