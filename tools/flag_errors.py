"""Errors that name the flag they are about."""

import contextlib


@contextlib.contextmanager
def of_flag(name, value):
    """Starts the message of a `ValueError` in the block with the flag and its value."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"--{name} {value}: {error}") from error
