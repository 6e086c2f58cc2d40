"""Weights as {variable path: array} and as files, with every variable accounted for on both
sides.
"""

import hashlib

import keras

from keras_deit.presets.matching import check_match
from keras_deit.presets.safetensors_file import read_tensors, write_tensors


def save_weights(model, file):
    """Writes a safetensors file and returns its entry for `metadata.json`."""
    return {"sha256": write_tensors(file, state_of(model))}


def read_weights(file, entry, source):
    """{variable path: array} of what `save_weights` wrote.

    Args:
        file: path, or `None` if the file is missing.
        entry: dict, what `save_weights` returned.
        source: the file in words.

    Raises:
        ValueError: the file is missing, was cut short or was changed.
    """
    _check_checksum(_present(file, source), entry, source)
    return read_tensors(file)


def load_hdf5_weights(model, file, entry, source):
    """Reads what version 0.1 wrote, Keras' own HDF5, into a model of the same architecture.

    Args:
        model: Keras model.
        file, source: as of `read_weights`.
        entry: dict with "sha256", and "variables", {path: shape}.

    Raises:
        ValueError: the file is missing, was changed, or is of another architecture.
    """
    check_match(
        {path: tuple(shape) for path, shape in entry["variables"].items()},
        shapes(model),
        f"The weights of {source} do not fit the model. "
        "`config.json` or `task.json` has changed since the weights were written: restore it, or "
        "save the preset again.",
    )
    _check_checksum(_present(file, source), entry, source)
    model.load_weights(file)


def _present(file, source):
    if file is None:
        raise ValueError(
            f"The preset lacks its weights: {source} does not exist. "
            "Copy the file, or give `load_weights=False` for a model with random weights."
        )
    return file


def _check_checksum(file, entry, source):
    found = checksum(file)
    if found != entry["sha256"]:
        raise ValueError(
            f"The weights file was cut short or changed: {source} has SHA-256 {found}, and "
            f"`metadata.json` says {entry['sha256']}. "
            "Copy the preset again, or save it again."
        )


def state_of(model):
    """{variable path: array} of a model's weights. What LoRA adds is in the kernels."""
    state = {
        path: keras.ops.convert_to_numpy(variable) for path, variable in variables_of(model).items()
    }
    scope = _scope(model)
    for layer in _leaves(model.layers):
        if getattr(layer, "lora_enabled", False):
            state.update(_without_lora(layer, layer.path.removeprefix(scope)))
    return state


def assign(state, model, source):
    """Gives every variable of `model` its array of `state`, and uses every array, or raises a
    ValueError.

    `state` is empty afterwards: each array can go when the model has it, so that large models do
    not take twice their size.
    """
    check_match(
        {path: tuple(array.shape) for path, array in state.items()},
        shapes(model),
        f"The weights of {source} do not fit the model. "
        "Trained weights adapt to another `image_shape` and `num_classes`, and to another `dtype` "
        "if they are not quantized: "
        "leave the rest as the preset has it, or give `load_weights=False`.",
    )
    for path, variable in variables_of(model).items():
        variable.assign(state.pop(path))


def shapes(model):
    return {path: tuple(variable.shape) for path, variable in variables_of(model).items()}


def variables_of(model):
    """{variable path: variable}, by paths that start with the model's own layers, wherever the
    model was made.
    """
    scope = _scope(model)
    return {v.path.removeprefix(scope): v for v in model.weights if "/lora_kernel_" not in v.path}


def _scope(model):
    layer = next(layer for layer in model.layers if layer.weights)
    return layer.path.removesuffix(layer.name)


def _leaves(layers):
    """The layers, and in place of those made of others what they are made of."""
    for layer in layers:
        inner = getattr(layer, "layers", None) or getattr(layer, "sublayers", None)
        if inner:
            yield from _leaves(inner)
        else:
            yield layer


def _without_lora(layer, path):
    """{variable path: array} of a layer that LoRA trains, as Keras itself saves it: folded into the
    kernel.
    """
    store = {}
    layer.save_own_variables(store)
    twin = type(layer).from_config({**layer.get_config(), "lora_rank": None})
    twin.build_from_config(layer.get_build_config())
    twin.load_own_variables(
        {key: keras.ops.convert_to_numpy(value) for key, value in store.items()}
    )
    return {
        f"{path}/{v.path.rpartition('/')[-1]}": keras.ops.convert_to_numpy(v) for v in twin.weights
    }


def checksum(file):
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
