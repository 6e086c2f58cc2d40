"""Settings of other libraries' models that DeiT does not have."""


def refuse_other_settings(where, settings, supported):
    """Raises a ValueError unless each of `settings` is absent, `None`, or one of the values that `supported` gives it."""
    others = [
        f"{key}={value!r} (supported: {' or '.join(map(repr, supported[key])) if key in supported else 'none'})"
        for key, value in settings.items()
        if value is not None and value not in supported.get(key, ())
    ]
    if others:
        raise ValueError(
            f"{where} describes a model that is no DeiT, or preprocessing that is not its own: {'; '.join(others)}."
        )
