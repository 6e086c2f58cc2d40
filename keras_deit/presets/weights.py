"""Weights as {variable path: array}: out of models, into models, and in files.

Every variable must match an array and every array a variable; anything else is an error.
"""

import pathlib
import tempfile

import keras

from keras_deit.presets.hdf5_file import check_hdf5
from keras_deit.presets.mismatches import refuse_mismatches
from keras_deit.presets.safetensors_file import parse_tensors, write_tensors
from keras_deit.presets.tensor_values import is_float, refuse_non_finite
from keras_deit.presets.words import listed


def save_weights(model, file):
    """Writes a safetensors file.

    Raises:
        ValueError: if a weight is NaN or infinite.
    """
    state = state_of(model)
    refuse_non_finite(state, "the model")
    write_tensors(file, state)


def read_weights(content, where):
    """{variable path: array} of the content of a file that `save_weights` wrote.

    Raises:
        ValueError: if it is not a safetensors file, or a weight is NaN or infinite.
    """
    state = parse_tensors(content, where)
    refuse_non_finite(state, where)
    return state


def read_hdf5_weights(content, saved_shapes, build_model, where):
    """{variable path: array} of the content of a file that version 0.1 wrote.

    Args:
        content: bytes.
        saved_shapes: {variable path: shape} from metadata.json.
        build_model: function without arguments that builds a model of the saved architecture.
        where: name of the file in errors.

    Raises:
        ValueError: if the model does not match, or the file has anything but plain arrays.
    """
    check_hdf5(content, saved_shapes.values(), where)
    model = build_model()
    refuse_mismatches(
        {path: tuple(shape) for path, shape in saved_shapes.items()},
        shapes(model),
        f"The weights of {where} do not fit the model. `config.json` or `task.json` has changed "
        "since the weights were written: restore it, or save the preset again.",
    )
    with tempfile.TemporaryDirectory() as folder:
        # Keras reads files alone, and these are the bytes that were checked.
        file = pathlib.Path(folder) / "model.weights.h5"
        file.write_bytes(content)
        model.load_weights(file)
    state = state_of(model)
    refuse_non_finite(state, where)
    return state


def state_of(model):
    """{variable path: array} of a model's weights, with LoRA merged into the kernels."""
    state = {path: _array(variable) for path, variable in variables_of(model).items()}
    scope = _scope(model)
    for layer in leaf_layers(model.layers):
        if getattr(layer, "lora_enabled", False):
            state.update(_without_lora(layer, layer.path.removeprefix(scope)))
    return state


def assign(state, model, source):
    """Assigns each array of `state` to the variable of that path, and empties `state`.

    Each array is released as soon as the model has it, so that a large model does not take twice
    its memory.

    Raises:
        ValueError: if paths, shapes or kinds of numbers differ; the message lists them.
    """
    refuse_mismatches(
        {path: tuple(array.shape) for path, array in state.items()},
        shapes(model),
        f"The weights of {source} do not fit the model. They adapt to another "
        "`image_shape`, and to another `dtype` unless they are quantized; another `num_classes` "
        "gets a new head. Keep the preset's other arguments, or use `load_weights=False` for "
        "random weights.",
    )
    variables = variables_of(model)
    refuse_other_numbers(state, variables, source)
    for path, variable in variables.items():
        variable.assign(state.pop(path))


def refuse_other_numbers(state, variables, source):
    """Floats may have another precision; the integers of quantized weights must be the same."""
    wrong = []
    for path, variable in variables.items():
        found, expected = state[path].dtype, keras.backend.standardize_dtype(variable.dtype)
        if found.name != expected and not (
            is_float(found) and keras.backend.is_float_dtype(expected)
        ):
            wrong.append(f"{path} has {found.name}, not {expected}")
    if wrong:
        raise ValueError(
            f"The weights of {source} have other kinds of numbers than the model. Copy the file "
            f"again, or use `load_weights=False` for random weights: {listed(wrong)}"
        )


def shapes(model):
    return {path: tuple(variable.shape) for path, variable in variables_of(model).items()}


def variables_of(model):
    """{variable path: variable}, with paths relative to the model."""
    scope = _scope(model)
    return {v.path.removeprefix(scope): v for v in model.weights if "/lora_kernel_" not in v.path}


def _array(variable):
    # A tensor, because NumPy 2.4 warns of TensorFlow's variables.
    return keras.ops.convert_to_numpy(keras.ops.stop_gradient(variable))


def _scope(model):
    """The prefix of variable paths if the model was built in a name scope; otherwise empty."""
    layer = next(layer for layer in model.layers if layer.weights)
    return layer.path.removesuffix(layer.name)


def leaf_layers(layers):
    """All layers that have no layers inside them."""
    for layer in layers:
        inner = getattr(layer, "layers", None) or getattr(layer, "sublayers", None)
        if inner:
            yield from leaf_layers(inner)
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
    return {f"{path}/{v.path.rpartition('/')[-1]}": _array(v) for v in twin.weights}
