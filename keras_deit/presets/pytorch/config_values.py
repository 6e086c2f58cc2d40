"""Reading values from the configurations of other packages."""

from absl import logging

from keras_deit.arguments import as_pair
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


def whole_patches(image_size, patch_size, where):
    """(height, width) of the pixels that the model reads: those that fill whole patches.

    The other libraries' convolutions leave out the rest, at the bottom and at the right.
    """
    sizes = tuple(zip(image_size, as_pair(patch_size)))
    read = tuple(size // patch * patch for size, patch in sizes)
    if 0 in read or read == tuple(image_size):
        return tuple(image_size)  # too small an image gets its own error
    logging.warning(
        "The model of %s takes images of %s pixels and reads %s of them, the whole patches. Here "
        "images are resized to the latter, which changes outputs slightly.",
        where,
        " x ".join(map(str, image_size)),
        " x ".join(map(str, read)),
    )
    return read


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
