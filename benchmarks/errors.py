"""Errors of a measurement."""

import re


class NotSupportedError(Exception):
    """The subject or the machine does not have this mode, dtype, backend or preset."""


def last_error(log):
    """The line of a process's output that names its last exception, or its last line."""
    lines = log.strip().splitlines() or [""]
    named = [line for line in lines if re.match(r"[\w.]+(Error|Exception|NotSupported\w*): ", line)]
    return (named or lines)[-1][:500]
