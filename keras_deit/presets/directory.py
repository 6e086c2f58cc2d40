"""A preset as a directory of plain files.

    config.json            the backbone's arguments
    model.safetensors      its weights
    task.json              the classifier's own arguments
    head.safetensors       the weights of its head, apart, so that another head can take its place
    preprocessor.json      what turns raw images into the model's input
    labels.json            the names of the classes
    metadata.json          versions, and each weights file's checksum
    README.md              the model card

A backbone alone has the first two and the last two. Version 0.1 wrote HDF5, which still loads:
model.weights.h5, task.weights.h5.
"""

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
from keras_deit.presets.files import Folder, read_json

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
TASK = "task.json"
HEAD_WEIGHTS = "head.safetensors"
PREPROCESSOR = "preprocessor.json"
LABELS = "labels.json"
METADATA = "metadata.json"
CARD = "README.md"
# What version 0.1 wrote in their place
HDF5 = {WEIGHTS: "model.weights.h5", HEAD_WEIGHTS: "task.weights.h5"}
FILES = (CONFIG, WEIGHTS, TASK, HEAD_WEIGHTS, PREPROCESSOR, LABELS, METADATA, CARD, *HDF5.values())

FORMAT = 2
HDF5_FORMAT = 1


def write_preset(
    directory, backbone, task_config=None, head=None, preprocessor=None, labels=None, origin=None
):
    """Writes a preset directory, whole or not at all.

    Args:
        directory: path. A preset that is there is replaced, but for a model card that someone has
            edited; anything else is refused.
        backbone: the backbone model.
        task_config: dict, the classifier's own arguments; `None` for a backbone alone.
        head: model of the classifier's layers after the backbone.
        preprocessor: Keras layer or `None`.
        labels: sequence of strings or `None`.
        origin: handle of the preset that the weights come from, or `None`.
    """
    directory = pathlib.Path(os.path.expanduser(directory)).absolute()
    replaced = None
    if directory.is_dir() and any(directory.iterdir()):
        replaced = PresetDirectory(Folder(directory))  # refuses to replace anything else
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


class PresetDirectory:
    """Reads what `write_preset` wrote, and says what is wrong with it."""

    def __init__(self, files):
        self._files = files
        if files.find(CONFIG) is None or files.find(METADATA) is None:
            raise ValueError(
                f"{files} is not a preset: a preset has {CONFIG} and {METADATA}, as "
                "`save_to_preset` writes them, or the "
                f"{CONFIG} of timm or transformers. Found: {files.listing()}"
            )
        metadata = self._read(METADATA)
        if not _is_metadata(metadata):
            raise ValueError(
                f"{self._files.where(METADATA)} must be of format {FORMAT} and list the files, and "
                "the weights with their checksums. "
                "It was changed, or a later version of keras_deit wrote it: save the preset again, "
                "or upgrade."
            )
        self._weights = metadata["weights"]
        self._is_hdf5 = metadata["format"] == HDF5_FORMAT
        self._card_sha256 = metadata.get("card_sha256")
        origin = metadata.get("origin")
        self.origin = origin if published(origin) else files.handle or origin
        self._lists_labels = LABELS in metadata["files"]
        for name in metadata["files"]:
            # Without its preprocessor or head a model would be another one. Labels may be given
            # anew: see `labels`.
            if name in (TASK, PREPROCESSOR) and self._files.find(name) is None:
                raise ValueError(
                    f"The preset lacks one of its files: {self._files.where(name)} does not exist. "
                    "Copy the preset again."
                )

    def backbone_config(self, cls):
        content = self._read(CONFIG)
        name = keras.saving.get_registered_name(cls)
        if (
            not isinstance(content, dict)
            or content.get("class_name") != name
            or "config" not in content
        ):
            raise ValueError(
                f"{self._files.where(CONFIG)} must hold the `config` of a {name}. Received: "
                f"{content.get('class_name') if isinstance(content, dict) else content!r}"
            )
        _check_arguments(content["config"], cls, self._files.where(CONFIG))
        return content["config"]

    def task_config(self, cls, given_apart):
        """The classifier's own arguments, or `None`. `given_apart`: arguments of `cls` that are not
        in this file.
        """
        config = self._read(TASK)
        if config is not None:
            _check_arguments(config, cls, self._files.where(TASK), given_apart)
        return config

    def preprocessor_config(self):
        """The serialized preprocessor, or `None`."""
        config = self._read(PREPROCESSOR)
        if config is not None and not (
            isinstance(config, dict) and isinstance(config.get("config"), dict)
        ):
            raise ValueError(
                f"{self._files.where(PREPROCESSOR)} must hold a serialized Keras layer. Received: "
                f"{config!r}"
            )
        return config

    def labels(self, num_classes):
        labels = self._read(LABELS)
        if labels is None and self._lists_labels:
            raise ValueError(
                f"The preset lacks its labels: {self._files.where(LABELS)} does not exist. Copy "
                "the preset again, or give `labels=[...]`, "
                "or `labels=None` to do without."
            )
        if labels is not None and (not isinstance(labels, list) or len(labels) != num_classes):
            count = len(labels) if isinstance(labels, list) else f"a {type(labels).__name__}"
            raise ValueError(
                f"{self._files.where(LABELS)} must list one label for each of the {num_classes} "
                f"classes in {TASK}. "
                f"Received: {count}. Correct the list, or give `labels=[...]`, or `labels=None` to "
                "do without."
            )
        return labels

    def backbone_state(self, build_saved):
        """{variable path: array}; `build_saved()` is a backbone with the config of the file."""
        return self._state(WEIGHTS, build_saved)

    def head_state(self, build_saved):
        """{variable path: array}; `build_saved()` is a head with the config of the file."""
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
        return weights.state_of(saved)

    @property
    def has_head(self):
        return self._files.find(TASK) is not None

    def card_is_edited(self):
        """Whether there is a model card that `write_preset` did not write."""
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


def _check_arguments(config, cls, file, given_apart=()):
    if not isinstance(config, dict):
        raise ValueError(f"{file} must hold the arguments of {cls.__name__}. Received: {config!r}")
    parameters = {
        name: parameter
        for name, parameter in inspect.signature(cls.__init__).parameters.items()
        if name != "self" and name not in given_apart
    }
    unknown = sorted(set(config) - set(parameters))
    missing = [
        name for name, p in parameters.items() if p.default is p.empty and name not in config
    ]
    if unknown or missing:
        raise ValueError(
            f"{file} does not hold the arguments of {cls.__name__}. "
            f"Missing: {', '.join(missing) or 'none'}. Unknown: {', '.join(unknown) or 'none'}. "
            "Correct the file, or save the preset again."
        )
