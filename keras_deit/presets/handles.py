"""From the handle that a user gives to `from_preset` to a preset that can be read."""

import difflib
import os
import pathlib

from keras_deit.atomic import recover_directory, resolved
from keras_deit.presets.catalog import ARCHITECTURES, BUILT_IN, published
from keras_deit.presets.directory import DirectoryPreset
from keras_deit.presets.imagenet import imagenet_labels
from keras_deit.presets.preset import Preset
from keras_deit.presets.pytorch.preset import PyTorchPreset
from keras_deit.presets.pytorch.timm import timm_preset
from keras_deit.presets.pytorch.transformers import transformers_preset
from keras_deit.presets.sources import HUB, Folder, Repository, is_repository_name, read_json
from keras_deit.presets.words import short

_ASSETS = pathlib.Path(__file__).parent.parent / "assets"


def find_preset(
    handle: str | os.PathLike, load_weights: bool = True, revision: str | None = None
) -> Preset:
    """Finds the preset that a handle names.

    Args:
        handle: a name from `Cls.presets`, `"hf://owner/repo"`, or the path of a directory.
            Repositories and directories may be in the format of `save_to_preset`, timm or
            transformers; their config.json tells which.
        load_weights: bool. `False` leaves the weights unread. Defaults to `True`.
        revision: commit, tag or branch of a repository on the hub. Defaults to `None`, the newest
            commit of the main branch.

    Returns:
        A `Preset`.

    Raises:
        ValueError: if there is no such preset, or `revision` is used with a preset that is not on
            the hub.
    """
    if not isinstance(handle, (str, os.PathLike)):
        raise ValueError(
            "A preset handle is a built-in name, 'hf://owner/repo' or the path of a directory. "
            f"Received: {handle!r}"
        )
    if isinstance(handle, str):
        if handle in ARCHITECTURES:
            row = ARCHITECTURES[handle]
            files = Repository(row.timm_repository, True, revision or row.commit)
            return _published(row, files, origin=handle, sha256=None if revision else row.sha256)
        if handle.startswith(HUB):
            files = Repository(handle.removeprefix(HUB), revision=revision)
            return _from_hub(files, load_weights)
    if revision is not None:
        raise ValueError(
            "`revision` selects a commit of a preset on the Hugging Face Hub, and "
            f"{os.fspath(handle)!r} is not there. Received: revision={revision!r}"
        )
    if isinstance(handle, str) and handle in BUILT_IN:
        return DirectoryPreset(Folder(_ASSETS / handle), load_weights)
    path = resolved(handle)
    if not os.path.exists(path) and not recover_directory(path) and not os.path.exists(path):
        raise ValueError(_unknown(os.fspath(handle)))
    return _by_config(Folder(path), load_weights)


def _from_hub(files, load_weights):
    row = published(files.handle)
    if row is not None and files.name == row.transformers_repository:
        # facebook's configs have another epsilon than the training used, and some have another
        # preprocessing, so the catalog's values are used.
        return _published(row, files, origin=files.handle)
    return _by_config(files, load_weights)


def _published(row, files, origin, sha256=None):
    return PyTorchPreset(
        files,
        origin,
        row.backbone_config,
        row.classifier_config,
        lambda: row.converter_config,
        list(imagenet_labels()),
        sha256=sha256,
    )


def _by_config(files, load_weights):
    config = read_json(files, "config.json")
    # transformers first: its config of a wrapped timm model has both keys, and
    # `transformers_preset` explains why that does not load.
    if isinstance(config, dict) and "model_type" in config:
        return transformers_preset(files, config)
    if isinstance(config, dict) and "architecture" in config:
        return timm_preset(files, config)
    return DirectoryPreset(files, load_weights)


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
        f"and {short(handle)} is neither a name nor an existing path. {known}"
    )
