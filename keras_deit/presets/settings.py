"""Reading the configs of other libraries: what must be there, and what DeiT does not have."""


def required(config, name, where):
    """The value of a key that must be there; `null` is as good as absent."""
    value = config.get(name) if isinstance(config, dict) else None
    if value is None:
        raise ValueError(
            f"{where} must be a JSON object with {name!r}, which it lacks. Restore the file."
        )
    return value


def given(config):
    """What of `config` is not `null`."""
    return {name: value for name, value in config.items() if value is not None}


def refuse_others(problem, settings, supported):
    """Raises a ValueError that starts with `problem` unless each of `settings` is one of the values
    that `supported` gives it.
    """
    others = [
        f"{name}={value!r} (supported: "
        f"{' or '.join(map(repr, supported[name])) if name in supported else 'none'})"
        for name, value in settings.items()
        if value not in supported.get(name, ())
    ]
    if others:
        raise ValueError(f"{problem}: {'; '.join(others)}.")
