"""A preset as a directory of plain files.

    config.json            arguments of the backbone
    model.safetensors      weights of the backbone
    task.json              the classifier's own arguments
    head.safetensors       weights of the head, apart so that `num_classes=` can replace it
    preprocessor.json      the serialized preprocessor
    labels.json            class names
    metadata.json          versions, and a checksum for each weights file
    README.md              model card

A backbone alone has config.json, model.safetensors, metadata.json and README.md. Version 0.1 wrote
the weights as HDF5 (model.weights.h5, task.weights.h5); such presets still load.
"""

import gc
import inspect
import json
import os
import pathlib
import shutil

import keras

from keras_deit.atomic import atomic_directory
from keras_deit.presets import weights
from keras_deit.presets.card import model_card
from keras_deit.presets.catalog import published
from keras_deit.presets.preset import Preset
from keras_deit.presets.sources import Folder, read_json

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
TASK = "task.json"
HEAD_WEIGHTS = "head.safetensors"
PREPROCESSOR = "preprocessor.json"
LABELS = "labels.json"
METADATA = "metadata.json"
CARD = "README.md"
# The weights files of version 0.1
HDF5 = {WEIGHTS: "model.weights.h5", HEAD_WEIGHTS: "task.weights.h5"}
FILES = (CONFIG, WEIGHTS, TASK, HEAD_WEIGHTS, PREPROCESSOR, LABELS, METADATA, CARD, *HDF5.values())

FORMAT = 2
HDF5_FORMAT = 1


def write_preset(
    directory, backbone, task_config=None, head=None, preprocessor=None, labels=None, origin=None
):
    """Writes a preset directory atomically.

    Args:
        directory: path. An existing preset is replaced, but a model card that was edited is kept.
            A directory with any other file is refused.
        backbone: the backbone model.
        task_config: dict, the classifier's own arguments; `None` for a backbone alone.
        head: model of the classifier's layers after the backbone.
        preprocessor: Keras layer or `None`.
        labels: sequence of strings or `None`.
        origin: handle of the preset that the weights come from, or `None`.
    """
    directory = pathlib.Path(os.path.expanduser(directory)).absolute()
    replaced = _existing_preset(directory)
    with atomic_directory(directory, replaceable=FILES) as folder:
        files = {WEIGHTS: weights.save_weights(backbone, folder / WEIGHTS)}
        _write_json(folder / CONFIG, _class_and_config(backbone))
        if task_config is not None:
            files[HEAD_WEIGHTS] = weights.save_weights(head, folder / HEAD_WEIGHTS)
            _write_json(folder / TASK, task_config)
        if preprocessor is not None:
            _write_json(folder / PREPROCESSOR, keras.saving.serialize_keras_object(preprocessor))
        if labels is not None:
            _write_json(folder / LABELS, list(labels))
        names = sorted(file.name for file in folder.iterdir())
        parameters = backbone.count_params() + (0 if head is None else head.count_params())
        card = model_card(
            directory.name,
            backbone.get_config(),
            task_config,
            parameters,
            preprocessor is not None,
            origin,
        )
        (folder / CARD).write_text(card, encoding="utf-8")
        metadata = {
            "format": FORMAT,
            "keras_version": keras.__version__,
            "origin": origin,
            "files": names,
            "weights": files,
            "card_sha256": weights.checksum(folder / CARD),
        }
        if replaced is not None and replaced.card_is_edited():
            shutil.copyfile(directory / CARD, folder / CARD)
        _write_json(folder / METADATA, metadata)


def _existing_preset(directory):
    """The preset that a save replaces, or `None` for a missing or empty directory."""
    if not directory.is_dir() or not any(directory.iterdir()):
        return None
    try:
        return DirectoryPreset(Folder(directory))
    except ValueError as error:
        raise ValueError(
            f"Saving replaces only a preset or an empty directory. Use another path. {error}"
        ) from error


class DirectoryPreset(Preset):
    """A preset in this package's own format, in a local folder or on the hub."""

    def __init__(self, files):
        self._files = files
        if files.find(CONFIG) is None or files.find(METADATA) is None:
            raise ValueError(
                f"{files} is not a preset. A preset has {CONFIG} and {METADATA}, as "
                f"`save_to_preset` writes them, or the {CONFIG} of timm or transformers. "
                f"Found: {files.listing()}"
            )
        metadata = self._read(METADATA)
        if not _is_metadata(metadata):
            raise ValueError(
                f'{self._files.where(METADATA)} must have "format" {HDF5_FORMAT} or {FORMAT}, '
                '"files", and '
                '"weights" with their checksums. The file was changed, or a newer version of '
                "keras_deit wrote it: save the preset again, or upgrade."
            )
        self._weights = metadata["weights"]
        self._is_hdf5 = metadata["format"] == HDF5_FORMAT
        self._card_sha256 = metadata.get("card_sha256")
        origin = metadata.get("origin")
        self.origin = origin if published(origin) else files.handle or origin
        self._lists_labels = LABELS in metadata["files"]
        for name in metadata["files"]:
            # Without its head or preprocessor this would silently be another model. `labels=` can
            # replace missing labels: see `labels`.
            if name in (TASK, PREPROCESSOR) and self._files.find(name) is None:
                raise ValueError(
                    f"The preset is incomplete: {self._files.where(name)} does not exist. Copy "
                    "the preset again."
                )

    @property
    def has_head(self):
        return self._files.find(TASK) is not None

    def backbone_config(self, cls):
        content = self._read(CONFIG)
        name = keras.saving.get_registered_name(cls)
        if (
            not isinstance(content, dict)
            or content.get("class_name") != name
            or "config" not in content
        ):
            raise ValueError(
                f"{self._files.where(CONFIG)} must contain the `config` of a {name}. Received: "
                f"{content.get('class_name') if isinstance(content, dict) else content!r}"
            )
        _check_arguments(content["config"], cls, self._files.where(CONFIG))
        return content["config"]

    def task_config(self, cls, stored_apart):
        config = self._read(TASK)
        if config is not None:
            _check_arguments(config, cls, self._files.where(TASK), stored_apart)
        return config

    def preprocessor_config(self):
        config = self._read(PREPROCESSOR)
        if config is not None and not (
            isinstance(config, dict) and isinstance(config.get("config"), dict)
        ):
            raise ValueError(
                f"{self._files.where(PREPROCESSOR)} must contain a serialized Keras layer. "
                f"Received: {config!r}"
            )
        return config

    def labels(self, num_classes):
        labels = self._read(LABELS)
        if labels is None and self._lists_labels:
            raise ValueError(
                f"The preset is incomplete: {self._files.where(LABELS)} does not exist. Copy the "
                "preset again, or use `labels=[...]`, or `labels=None` for none."
            )
        if labels is not None and (not isinstance(labels, list) or len(labels) != num_classes):
            count = len(labels) if isinstance(labels, list) else f"a {type(labels).__name__}"
            raise ValueError(
                f"{self._files.where(LABELS)} must have one label for each of the {num_classes} "
                f"classes in {TASK}. Correct the list, or use `labels=[...]`, or `labels=None` "
                f"for none. Received: {count}"
            )
        return labels

    def backbone_state(self, build_saved):
        return self._state(WEIGHTS, build_saved)

    def head_state(self, build_saved):
        return self._state(HEAD_WEIGHTS, build_saved)

    def _state(self, name, build_saved):
        name = HDF5[name] if self._is_hdf5 else name
        if name not in self._weights:
            raise ValueError(
                f"{self._files.where(METADATA)} has no checksum for {name}. Save the preset again."
            )
        entry, source = self._weights[name], self._files.where(name)
        if not self._is_hdf5:
            return weights.read_weights(self._files.find(name), entry, source)
        saved = build_saved()
        weights.load_hdf5_weights(saved, self._files.find(name), entry, source)
        state = weights.state_of(saved)
        del saved
        gc.collect()  # a model has reference cycles, and the next one needs its memory
        return state

    def card_is_edited(self):
        """Whether the model card differs from what `write_preset` wrote."""
        card = self._files.find(CARD)
        return card is not None and weights.checksum(card) != self._card_sha256

    def _read(self, name):
        return read_json(self._files, name)


def _is_metadata(content):
    if not isinstance(content, dict) or content.get("format") not in (FORMAT, HDF5_FORMAT):
        return False
    files, entries = content.get("files"), content.get("weights")
    if not isinstance(files, list) or not isinstance(entries, dict):
        return False
    return all(_is_entry(entry, content["format"] == HDF5_FORMAT) for entry in entries.values())


def _is_entry(entry, is_hdf5):
    if not isinstance(entry, dict) or not isinstance(entry.get("sha256"), str):
        return False
    if not is_hdf5:
        return True
    variables = entry.get("variables")
    return isinstance(variables, dict) and all(
        isinstance(shape, list) for shape in variables.values()
    )


def _class_and_config(model):
    return {
        "class_name": keras.saving.get_registered_name(type(model)),
        "config": model.get_config(),
    }


def _write_json(file, content):
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _check_arguments(config, cls, file, stored_apart=()):
    """Refuses a config that lacks arguments of `cls` or has unknown ones."""
    if not isinstance(config, dict):
        raise ValueError(
            f"{file} must contain the arguments of {cls.__name__}. Received: {config!r}"
        )
    parameters = {
        name: parameter
        for name, parameter in inspect.signature(cls.__init__).parameters.items()
        if name != "self" and name not in stored_apart
    }
    unknown = sorted(set(config) - set(parameters))
    missing = [
        name for name, p in parameters.items() if p.default is p.empty and name not in config
    ]
    if unknown or missing:
        raise ValueError(
            f"{file} must contain the arguments of {cls.__name__}. Correct the file, or save the "
            f"preset again. Missing: {', '.join(missing) or 'none'}. "
            f"Unknown: {', '.join(unknown) or 'none'}."
        )
