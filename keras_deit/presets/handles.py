"""Where the files of a preset handle come from."""

import difflib
import os
import pathlib

from keras_deit.presets.catalog import ARCHITECTURES, BUILT_IN
from keras_deit.presets.directory import PresetDirectory
from keras_deit.presets.published import PublishedPreset

_ASSETS = pathlib.Path(__file__).parent.parent / "assets"


def find_preset(handle):
    """The preset that a handle names.

    Args:
        handle: a name of `Cls.presets`, or the path of a directory that `save_to_preset` wrote.

    Returns:
        `PublishedPreset` for a name of the catalog, `PresetDirectory` otherwise.

    Raises:
        ValueError: no such preset, or a directory that is not one.
    """
    if not isinstance(handle, (str, os.PathLike)):
        raise ValueError(f"A preset handle is a built-in name or the path of a directory. Received: {handle!r}")
    handle = os.fspath(handle)
    if handle in BUILT_IN:
        return PresetDirectory(_ASSETS / handle)
    if handle in ARCHITECTURES:
        return PublishedPreset(ARCHITECTURES[handle])
    if os.path.exists(handle):
        return PresetDirectory(handle)
    names = (*BUILT_IN, *ARCHITECTURES)
    close = difflib.get_close_matches(handle, names, n=3)
    known = f"Did you mean {' or '.join(close)}?" if close else f"Known names: {', '.join(names)}."
    raise ValueError(
        f"A preset handle is a built-in name or a directory, and {handle!r} is neither a name nor an existing path. {known}"
    )
