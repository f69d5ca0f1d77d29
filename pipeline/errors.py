"""The one kind of error that a person is expected to read and mend."""


class InputError(Exception):
    """Something outside the program is wrong. The message names the file, key or row and the
    remedy.
    """
