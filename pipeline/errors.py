"""The one kind of error that a person is expected to read and mend."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec


class InputError(Exception):
    """Something outside the program is wrong. The message names the file, key or row and the
    remedy.
    """


def require(module: str, extra: str, wanted: str) -> None:
    """Raises InputError unless `module`, which an extra brings, is installed; `wanted`: what asks
    for it.
    """
    if find_spec(module) is None:
        raise InputError(
            f"{wanted}, but the package {module} is not installed; it is of the extra '{extra}': "
            f"pip install -c constraints.txt -e '.[{extra}]'"
        )


@contextmanager
def naming(what: str, joint: str = ": ") -> Iterator[None]:
    """Says what was being done in front of an InputError's message."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{what}{joint}{error}") from None
