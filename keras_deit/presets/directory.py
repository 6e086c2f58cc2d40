"""A preset as a directory of plain files.

    config.json            arguments of the backbone
    model.safetensors      weights of the backbone
    task.json              the classifier's own arguments
    head.safetensors       weights of the head, apart so that `num_classes=` can replace it
    preprocessor.json      the preprocessor's arguments
    labels.json            class names
    metadata.json          versions, and a checksum for each of the other files
    README.md              model card

A backbone alone has config.json, model.safetensors, metadata.json and README.md. Version 0.1 wrote
the weights as HDF5 (model.weights.h5, task.weights.h5); such presets still load.
"""

import contextlib
import gc
import inspect
import json
import os

import keras
from absl import logging

from keras_deit.atomic import atomic_directory, resolved
from keras_deit.presets import schema, weights
from keras_deit.presets.architecture import refuse_unknown_sizes
from keras_deit.presets.card import model_card
from keras_deit.presets.catalog import published
from keras_deit.presets.kinds import check_values
from keras_deit.presets.metadata import (
    ALL_WEIGHTS,
    CARD,
    CONFIG,
    FILES,
    HDF5,
    HEAD_WEIGHTS,
    LABELS,
    METADATA,
    PREPROCESSOR,
    TASK,
    WEIGHTS,
    create_metadata,
    sha256,
)
from keras_deit.presets.preset import Preset
from keras_deit.presets.snapshot import Snapshot
from keras_deit.presets.sources import Folder
from keras_deit.presets.words import listed, short

_STARRED = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_BACKBONE = "keras_deit>DeiTBackbone"
_NOT_SAVED = "Change it before saving, or save the model as a .keras file."


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

    Raises:
        ValueError: if the preset could not be loaded, because a weight is NaN or a setting is not
            one that a preset keeps.
    """
    directory = resolved(directory)
    edited_card = _edited_card(directory)
    contents = {CONFIG: _class_and_config(backbone)}
    backbone_config = contents[CONFIG]["config"]
    check_values(backbone_config, schema.BACKBONE, "the backbone", _NOT_SAVED)
    if task_config is not None:
        if contents[CONFIG]["class_name"] != _BACKBONE:
            raise ValueError(
                f"A classifier's preset has a `DeiTBackbone`. {_NOT_SAVED} Received: a backbone of "
                f"class {type(backbone).__name__}"
            )
        check_values(task_config, schema.CLASSIFIER, "the classifier", _NOT_SAVED)
        contents[TASK] = task_config
    if preprocessor is not None:
        contents[PREPROCESSOR] = _serialized_preprocessor(preprocessor)
    if labels is not None:
        check_values({"labels": labels}, {"labels": schema.LABELS}, "the classifier", _NOT_SAVED)
        contents[LABELS] = list(labels)
    parameters = backbone.count_params() + (0 if head is None else head.count_params())
    card = model_card(
        directory.name,
        backbone_config,
        task_config,
        parameters,
        preprocessor is not None,
        origin,
    )
    with atomic_directory(directory, replaceable=FILES) as folder:
        weights.save_weights(backbone, folder / WEIGHTS)
        if head is not None:
            weights.save_weights(head, folder / HEAD_WEIGHTS)
        for name, content in contents.items():
            _write_json(folder / name, content)
        (folder / CARD).write_text(card, encoding="utf-8")
        _write_json(folder / METADATA, create_metadata(folder, origin))
        if edited_card is not None:
            (folder / CARD).write_bytes(edited_card)


def _edited_card(directory):
    """The model card of the preset that a save replaces, if its owner has edited it."""
    files = Folder(directory)
    if not os.path.exists(directory) and not files.recover() and not os.path.exists(directory):
        return None
    with contextlib.suppress(FileNotFoundError):  # another process is replacing it
        if directory.is_dir() and not any(directory.iterdir()):
            return None
    try:
        snapshot = Snapshot(files, without=ALL_WEIGHTS)
    except ValueError as error:
        raise ValueError(
            f"Saving replaces only a preset or an empty directory. Use another path. {error}"
        ) from error
    card = files.read(CARD)
    is_edited = card is not None and sha256(card) != snapshot.metadata.card_checksum
    return card if is_edited else None


class DirectoryPreset(Preset):
    """A preset in this package's own format, in a local folder or on the hub.

    Args:
        files: `Folder` or `Repository`.
        load_weights: bool. `False` leaves the weights unread.
    """

    backbone_file, head_file, converter_file = CONFIG, TASK, PREPROCESSOR

    def __init__(self, files, load_weights=True):
        self.files = files
        self._snapshot = Snapshot(files, without=() if load_weights else ALL_WEIGHTS)
        origin = self._snapshot.metadata.origin
        self.origin = origin if published(origin) else files.handle or origin
        # An int4 kernel has two parameters in a byte.
        self.most_parameters = 2 * self._snapshot.size(ALL_WEIGHTS) if load_weights else None

    @property
    def has_head(self):
        return TASK in self._snapshot

    def backbone_config(self, cls):
        name, where = keras.saving.get_registered_name(cls), self.files.where(CONFIG)
        content = self._snapshot.json(CONFIG)
        if not isinstance(content, dict) or content.get("class_name") != name:
            raise ValueError(
                f"{where} must contain the `config` of a {name}. Received: {short(content)}"
            )
        config = content.get("config")
        _check_arguments(config, cls, schema.BACKBONE, where)
        refuse_unknown_sizes(config, where)
        return config

    def task_config(self, cls, stored_apart):
        config = self._snapshot.json(TASK)
        if config is not None:
            _check_arguments(config, cls, schema.CLASSIFIER, self.files.where(TASK), stored_apart)
        return config

    def preprocessor_config(self):
        if PREPROCESSOR not in self._snapshot:
            return None
        content, where = self._snapshot.json(PREPROCESSOR), self.files.where(PREPROCESSOR)
        if (
            not isinstance(content, dict)
            or content.get("registered_name") != schema.CONVERTER_CLASS
        ):
            # A class that a file names could do anything, so files name one class alone.
            raise ValueError(
                f"{where} may contain only a `DeiTImageConverter`. Use `preprocessor=` with your "
                f"own layer, or `preprocessor=None`. Received: {_class_in_words(content)}"
            )
        config = content.get("config")
        check_values(config, schema.CONVERTER, where)
        _check_keys(config, schema.CONVERTER, ["image_size"], "DeiTImageConverter", where)
        return config

    def labels(self, num_classes):
        if LABELS not in self._snapshot:
            return None
        where = self.files.where(LABELS)
        try:
            labels = self._snapshot.json(LABELS)
            check_values({"labels": labels}, {"labels": schema.LABELS}, where)
            if len(labels) != num_classes:
                raise ValueError(
                    f"{where} must have one label for each of the {num_classes} classes in {TASK}. "
                    f"Received: {len(labels)}"
                )
        except ValueError as error:
            raise ValueError(
                f"{str(error).removesuffix('.')}. To load the model nevertheless, use "
                "`labels=[...]` or `labels=None`."
            ) from error
        return labels

    def backbone_state(self, build_saved):
        return self._state(WEIGHTS, build_saved)

    def head_state(self, build_saved):
        return self._state(HEAD_WEIGHTS, build_saved)

    def _state(self, name, build_saved):
        hdf5_shapes = self._snapshot.metadata.hdf5_shapes
        name = HDF5[name] if hdf5_shapes else name
        where = self.files.where(name)
        if name not in self._snapshot:
            raise ValueError(
                f"The preset has no weights: {self.files.where(METADATA)} does not list {name}. "
                "Copy the preset again, or use `load_weights=False` for random weights."
            )
        content = self._snapshot.take(name)
        if not hdf5_shapes:
            return weights.read_weights(content, where)
        state = weights.read_hdf5_weights(content, hdf5_shapes[name], build_saved, where)
        gc.collect()  # a model has reference cycles, and the next one needs its memory
        return state


def _check_arguments(config, cls, kinds, file, stored_apart=()):
    """Refuses a config with missing or unknown arguments of `cls`, or a value of another kind."""
    check_values(config, kinds, file)
    parameters = {
        name: parameter
        for name, parameter in parameters_of(cls).items()
        if name not in stored_apart
    }
    required = [name for name, each in parameters.items() if each.default is each.empty]
    _check_keys(config, parameters, required, cls.__name__, file)


def parameters_of(cls):
    """{name: parameter} of a constructor, and of its bases' as far as it has `**kwargs`."""
    found: dict = {}
    for base in cls.__mro__:
        if "__init__" in vars(base):
            parameters = inspect.signature(base.__init__).parameters.values()
            kinds = {parameter.kind for parameter in parameters}
            for parameter in parameters:
                if parameter.name != "self" and parameter.kind not in _STARRED:
                    found.setdefault(parameter.name, parameter)
            if inspect.Parameter.VAR_KEYWORD not in kinds:
                break
    return found


def _check_keys(config, known, required, name, file):
    missing = [key for key in required if key not in config]
    unknown = sorted(set(config) - set(known))
    if unknown or missing:
        raise ValueError(
            f"{file} must contain the arguments of {name}. Correct the file, or save the preset "
            f"again. Missing: {listed(missing)}. Unknown: {listed(unknown)}."
        )


def _serialized_preprocessor(preprocessor):
    content = keras.saving.serialize_keras_object(preprocessor)
    if content["registered_name"] != schema.CONVERTER_CLASS:
        logging.warning(
            "`from_preset` builds no preprocessor but `DeiTImageConverter` from a file. It will "
            "need `preprocessor=` with your %s.",
            type(preprocessor).__name__,
        )
    else:
        check_values(content["config"], schema.CONVERTER, "the preprocessor", _NOT_SAVED)
    return content


def _class_in_words(content):
    return short(content.get("class_name") if isinstance(content, dict) else content)


def _class_and_config(model):
    return {
        "class_name": keras.saving.get_registered_name(type(model)),
        "config": model.get_config(),
    }


def _write_json(file, content):
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
