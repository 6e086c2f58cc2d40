"""Where the files of a preset handle come from, and in which layout."""

import difflib
import os
import pathlib

from keras_deit.presets.catalog import ARCHITECTURES, BUILT_IN, published
from keras_deit.presets.directory import PresetDirectory
from keras_deit.presets.files import HUB, Folder, Repository, is_repository_name, read_json
from keras_deit.presets.imagenet import imagenet_labels
from keras_deit.presets.original import OriginalPreset
from keras_deit.presets.timm_layout import timm_preset
from keras_deit.presets.transformers_layout import transformers_preset

_ASSETS = pathlib.Path(__file__).parent.parent / "assets"


def find_preset(handle):
    """The preset that a handle names.

    Args:
        handle: a name of `Cls.presets`, `"hf://owner/repo"`, or the path of a directory: as
            `save_to_preset` wrote it, or timm's or transformers'. The directory's config.json tells
            which.

    Returns:
        `OriginalPreset` for PyTorch weights, `PresetDirectory` for this package's own.

    Raises:
        ValueError: no such preset, or a directory that is not one.
    """
    if not isinstance(handle, (str, os.PathLike)):
        raise ValueError(
            "A preset handle is a built-in name, 'hf://owner/repo' or the path of a directory. "
            f"Received: {handle!r}"
        )
    if isinstance(handle, str):
        if handle in BUILT_IN:
            return PresetDirectory(Folder(_ASSETS / handle))
        if handle in ARCHITECTURES:
            row = ARCHITECTURES[handle]
            return _published(row, Repository(row.timm_repository, published=True), origin=handle)
        if handle.startswith(HUB):
            return _of_hub(Repository(handle.removeprefix(HUB)))
    path = os.path.expanduser(handle)
    if not os.path.exists(path):
        raise ValueError(_unknown(os.fspath(handle)))
    return _by_config(Folder(path))


def _of_hub(files):
    row = published(files.handle)
    if row is not None and files.name == row.transformers_repository:
        # facebook's configs have another epsilon than the training, and some another preprocessing:
        # the catalog knows better.
        return _published(row, files, origin=files.handle)
    return _by_config(files)


def _published(row, files, origin):
    return OriginalPreset(
        files,
        origin,
        row.backbone_config,
        row.classifier_config,
        lambda: row.converter_config,
        list(imagenet_labels()),
    )


def _by_config(files):
    config = read_json(files, "config.json")
    # In this order: transformers' config of a wrapped timm model has both keys, and is
    # transformers' to refuse.
    if isinstance(config, dict) and "model_type" in config:
        return transformers_preset(files, config)
    if isinstance(config, dict) and "architecture" in config:
        return timm_preset(files, config)
    return PresetDirectory(files)


def _unknown(handle):
    names = (*BUILT_IN, *ARCHITECTURES)
    close = (
        [f"{HUB}{handle}"]
        if is_repository_name(handle)
        else difflib.get_close_matches(handle, names, n=3)
    )
    known = f"Did you mean {' or '.join(close)}?" if close else f"Known names: {', '.join(names)}."
    return (
        "A preset handle is a built-in name, 'hf://owner/repo' or a directory, "
        f"and {handle!r} is neither a name nor an existing path. {known}"
    )
