"""The one kind of error that a person is expected to read and mend."""

from collections.abc import Iterator
from contextlib import contextmanager


class InputError(Exception):
    """Something outside the program is wrong. The message names the file, key or row and the
    remedy.
    """


@contextmanager
def naming(what: str, joint: str = ": ") -> Iterator[None]:
    """Says what was being done in front of an InputError's message."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{what}{joint}{error}") from None
