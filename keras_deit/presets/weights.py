"""Weights as files and as {variable path: array}, with every variable accounted for on both sides."""

import hashlib

import keras

from keras_deit.presets.listing import listed


def save_weights(model, file):
    """Writes `file` and returns its entry for `metadata.json`: the checksum, and each variable with its shape."""
    model.save_weights(file)
    return {"sha256": checksum(file), "variables": {path: list(shape) for path, shape in shapes(model).items()}}


def load_weights(model, file, entry):
    """Reads what `save_weights` wrote into a model of the same architecture, or raises a ValueError."""
    check_match(
        {path: tuple(shape) for path, shape in entry["variables"].items()},
        shapes(model),
        source=f"{file}",
        advice="`config.json` or `task.json` has changed since the weights were written: restore it, or save the preset again.",
    )
    if not file.is_file():
        raise ValueError(
            f"The preset lacks its weights: {file} does not exist. "
            "Copy the file, or give `load_weights=False` for a model with random weights."
        )
    found = checksum(file)
    if found != entry["sha256"]:
        raise ValueError(
            f"The weights file was cut short or changed: {file} has SHA-256 {found}, and `metadata.json` says {entry['sha256']}. "
            "Copy the preset again, or save it again."
        )
    model.load_weights(file)


def state_of(model):
    """{variable path: array} of a model's weights."""
    return {variable.path: keras.ops.convert_to_numpy(variable) for variable in model.weights}


def assign(state, model, source):
    """Gives every variable of `model` its array of `state`, and uses every array, or raises a ValueError."""
    check_match(
        {path: tuple(array.shape) for path, array in state.items()},
        shapes(model),
        source=source,
        advice="Trained weights adapt to another `image_shape`, `num_classes` and `dtype`: leave the other sizes as the preset has them, "
        "or give `load_weights=False`.",
    )
    for variable in model.weights:
        variable.assign(state[variable.path])


def shapes(model):
    # LoRA's factors are folded into their kernel when Keras saves.
    return {variable.path: tuple(variable.shape) for variable in model.weights if "/lora_kernel_" not in variable.path}


def check_match(found, expected, source, advice):
    """Raises a ValueError unless the {path: shape} that came is the one expected."""
    missing = [f"{path} {shape}" for path, shape in expected.items() if path not in found]
    left_over = [f"{path} {shape}" for path, shape in found.items() if path not in expected]
    misshapen = [
        f"{path} is {found[path]}, the model has {shape}"
        for path, shape in expected.items()
        if path in found and found[path] != shape
    ]
    if missing or left_over or misshapen:
        raise ValueError(
            f"The weights of {source} do not fit the model. {advice}\n"
            f"Missing: {listed(missing)}\nLeft over: {listed(left_over)}\nOther shape: {listed(misshapen)}"
        )


def checksum(file):
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
