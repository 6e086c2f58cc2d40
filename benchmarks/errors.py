"""What a measurement can answer other than figures."""


class NotSupportedError(Exception):
    """The subject, or the machine, does not have this mode, dtype, backend or preset."""
