"""Reading values from the configurations of other packages."""

from keras_deit.presets.words import listed, short


def required(config, name, where):
    """The value of a key that must exist and not be `null`."""
    value = config.get(name) if isinstance(config, dict) else None
    if value is None:
        raise ValueError(f"{where} must be a JSON object with {name!r}. Restore the file.")
    return value


def without_nulls(config):
    """A JSON object without its `null`s; anything else unchanged."""
    if not isinstance(config, dict):
        return config
    return {name: value for name, value in config.items() if value is not None}


def refuse_unsupported(problem, settings, supported):
    """Raises a ValueError that starts with `problem` if any setting has an unsupported value.

    Args:
        problem: string.
        settings: {name: value}.
        supported: {name: tuple of values}; a name that is missing has no supported value.
    """
    unsupported = [
        f"{name}={short(value)} (supported: "
        f"{' or '.join(map(repr, supported[name])) if name in supported else 'none'})"
        for name, value in settings.items()
        if value not in supported.get(name, ())
    ]
    if unsupported:
        raise ValueError(f"{problem}: {listed(unsupported)}.")
