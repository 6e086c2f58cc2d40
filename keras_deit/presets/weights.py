"""Weights as files and as {variable path: array}, with every variable accounted for on both sides."""

import hashlib

import h5py
import keras

from keras_deit.presets.matching import check_match

_LARGE = 2**24  # bytes; beyond, the groups do not matter and a second copy takes time


def save_weights(model, file):
    """Writes `file` and returns its entry for `metadata.json`: the checksum, and each variable with its shape."""
    model.save_weights(file)
    _compact(file)
    return {"sha256": checksum(file), "variables": {path: list(shape) for path, shape in shapes(model).items()}}


def load_weights(model, file, entry, source):
    """Reads what `save_weights` wrote into a model of the same architecture, or raises a ValueError.

    Args:
        model: Keras model.
        file: path, or `None` if the file is missing.
        entry: dict, what `save_weights` returned.
        source: the file in words.
    """
    check_match(
        {path: tuple(shape) for path, shape in entry["variables"].items()},
        shapes(model),
        f"The weights of {source} do not fit the model. "
        "`config.json` or `task.json` has changed since the weights were written: restore it, or save the preset again.",
    )
    if file is None:
        raise ValueError(
            f"The preset lacks its weights: {source} does not exist. "
            "Copy the file, or give `load_weights=False` for a model with random weights."
        )
    found = checksum(file)
    if found != entry["sha256"]:
        raise ValueError(
            f"The weights file was cut short or changed: {source} has SHA-256 {found}, and `metadata.json` says {entry['sha256']}. "
            "Copy the preset again, or save it again."
        )
    model.load_weights(file)


def state_of(model):
    """{variable path: array} of a model's weights."""
    return {path: keras.ops.convert_to_numpy(variable) for path, variable in variables_of(model).items()}


def assign(state, model, source):
    """Gives every variable of `model` its array of `state`, and uses every array, or raises a ValueError.

    `state` is empty afterwards: each array can go when the model has it, so that large models do not take twice their size.
    """
    check_match(
        {path: tuple(array.shape) for path, array in state.items()},
        shapes(model),
        f"The weights of {source} do not fit the model. "
        "Trained weights adapt to another `image_shape` and `num_classes`, and to another `dtype` if they are not quantized: "
        "leave the rest as the preset has it, or give `load_weights=False`.",
    )
    for path, variable in variables_of(model).items():
        variable.assign(state.pop(path))


def shapes(model):
    return {path: tuple(variable.shape) for path, variable in variables_of(model).items()}


def variables_of(model):
    """{variable path: variable}, by paths that start with the model's own layers, wherever the model was made."""
    layer = next(layer for layer in model.layers if layer.weights)
    scope = layer.path.removesuffix(layer.name)
    # LoRA's factors are folded into their kernel when Keras saves.
    return {v.path.removeprefix(scope): v for v in model.weights if "/lora_kernel_" not in v.path}


def _compact(file):
    """The same file in HDF5's newer format: in the oldest, which Keras writes, the groups of a small model take 0.1 MB."""
    if file.stat().st_size > _LARGE:
        return
    new = file.with_suffix(".compact")
    with h5py.File(file) as source, h5py.File(new, "w", libver="latest") as target:

        def copy(name, item):
            if isinstance(item, h5py.Group):
                copied = target.create_group(name)
            else:
                copied = target.create_dataset(name, data=item[()])
            copied.attrs.update(item.attrs)

        source.visititems(copy)
        target.attrs.update(source.attrs)
    new.replace(file)


def checksum(file):
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
