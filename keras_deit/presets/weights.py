"""Weights as {variable path: array}: out of models, into models, and in files.

Every variable must match an array and every array a variable; anything else is an error.
"""

import hashlib

import keras

from keras_deit.presets.mismatches import refuse_mismatches
from keras_deit.presets.safetensors_file import read_tensors, write_tensors


def save_weights(model, file):
    """Writes a safetensors file and returns its entry in `metadata.json`."""
    return {"sha256": write_tensors(file, state_of(model))}


def read_weights(file, entry, source):
    """Reads {variable path: array} from a file that `save_weights` wrote.

    Args:
        file: path, or `None` if the file is missing.
        entry: dict, what `save_weights` returned.
        source: name of the file in errors.

    Raises:
        ValueError: if the file is missing or its checksum is wrong.
    """
    _check_checksum(_existing(file, source), entry, source)
    return read_tensors(file)


def load_hdf5_weights(model, file, entry, source):
    """Loads the HDF5 file of a preset that version 0.1 saved.

    Args:
        model: Keras model of the architecture that was saved.
        file: path, or `None` if the file is missing.
        entry: dict with "sha256" and "variables", {path: shape}.
        source: name of the file in errors.

    Raises:
        ValueError: if the file is missing, its checksum is wrong, or the model does not match.
    """
    refuse_mismatches(
        {path: tuple(shape) for path, shape in entry["variables"].items()},
        shapes(model),
        f"The weights of {source} do not fit the model. `config.json` or `task.json` has changed "
        "since the weights were written: restore it, or save the preset again.",
    )
    _check_checksum(_existing(file, source), entry, source)
    model.load_weights(file)


def _existing(file, source):
    if file is None:
        raise ValueError(
            f"The preset has no weights: {source} does not exist. Copy the file, or use "
            "`load_weights=False` for random weights."
        )
    return file


def _check_checksum(file, entry, source):
    found = checksum(file)
    if found != entry["sha256"]:
        raise ValueError(
            f"{source} is truncated or was changed: `metadata.json` has SHA-256 "
            f"{entry['sha256']}, the file {found}. Copy the preset again, or save it again."
        )


def state_of(model):
    """{variable path: array} of a model's weights, with LoRA merged into the kernels."""
    state = {
        path: keras.ops.convert_to_numpy(variable) for path, variable in variables_of(model).items()
    }
    scope = _scope(model)
    for layer in _leaves(model.layers):
        if getattr(layer, "lora_enabled", False):
            state.update(_without_lora(layer, layer.path.removeprefix(scope)))
    return state


def assign(state, model, source):
    """Assigns each array of `state` to the variable of that path, and empties `state`.

    Each array is released as soon as the model has it, so that a large model does not take twice
    its memory.

    Raises:
        ValueError: if paths or shapes differ; the message lists them.
    """
    refuse_mismatches(
        {path: tuple(array.shape) for path, array in state.items()},
        shapes(model),
        f"The weights of {source} do not fit the model. They adapt to another "
        "`image_shape`, and to another `dtype` unless they are quantized; another `num_classes` "
        "gets a new head. Keep the preset's other arguments, or use `load_weights=False` for "
        "random weights.",
    )
    for path, variable in variables_of(model).items():
        variable.assign(state.pop(path))


def shapes(model):
    return {path: tuple(variable.shape) for path, variable in variables_of(model).items()}


def variables_of(model):
    """{variable path: variable}, with paths relative to the model."""
    scope = _scope(model)
    return {v.path.removeprefix(scope): v for v in model.weights if "/lora_kernel_" not in v.path}


def checksum(file):
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _scope(model):
    """The prefix of variable paths if the model was built in a name scope; otherwise empty."""
    layer = next(layer for layer in model.layers if layer.weights)
    return layer.path.removesuffix(layer.name)


def _leaves(layers):
    """All layers that have no layers inside them."""
    for layer in layers:
        inner = getattr(layer, "layers", None) or getattr(layer, "sublayers", None)
        if inner:
            yield from _leaves(inner)
        else:
            yield layer


def _without_lora(layer, path):
    """{variable path: array} of a layer with LoRA, merged into the kernel as Keras saves it."""
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
