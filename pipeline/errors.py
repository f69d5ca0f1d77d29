"""The one kind of error that a person is expected to read and mend."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec


class InputError(Exception):
    """Something outside the program is wrong. The message names the file, key or row and the
    remedy; of one that quotes too much, what stands before and behind is left.
    """

    def __str__(self) -> str:
        text = super().__str__()
        return text if len(text) <= 4000 else f"{text[:3000]} … {text[-900:]}"


FULL = {errno.ENOSPC, errno.EDQUOT}
# As libraries say it whose errors have no number: Rust's, Arrow's, SQLite's.
FULL_IN_WORDS = re.compile(r"no space left|quota exceeded|disk is full|os error (28|122)\b", re.I)


def is_disk_full(error: BaseException) -> bool:
    """Whether an error, or one that led to it, says that a disk or a quota is full."""
    if isinstance(error, OSError) and error.errno in FULL:
        return True
    if isinstance(error, Exception) and FULL_IN_WORDS.search(str(error)):
        return True
    before = error.__cause__ or error.__context__
    return before is not None and is_disk_full(before)


LONGEST = 120  # characters of what a message quotes


def shown(quoted: object, longest: int = LONGEST) -> str:
    """What was found in a file, for a message: in one line, signs that are not printed as their
    codes, cut to `longest` characters.
    """
    text = str(quoted)
    cut = text[:longest]
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)
    return f"{line} … ({len(text)} characters)" if len(text) > longest else line


def quoted(text: str) -> str:
    """`shown`, in quotes."""
    return f"'{shown(text)}'"


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
