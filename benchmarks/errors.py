"""What a measurement can answer other than figures."""

import re


class NotSupportedError(Exception):
    """The subject, or the machine, does not have this mode, dtype, backend or preset."""


def last_error(log):
    """The line of a process' output that names its last exception, or its last line.

    What follows the line is often the arguments, over many lines.
    """
    lines = log.strip().splitlines() or [""]
    named = [line for line in lines if re.match(r"[\w.]+(Error|Exception|NotSupported\w*): ", line)]
    return (named or lines)[-1][:500]
