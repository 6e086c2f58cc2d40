"""What layers take: one tensor of real numbers."""

import keras
from keras import ops


def as_floats(layer, inputs):
    """The inputs; integers and bools, which Keras does not cast, in the layer's dtype."""
    dtype = check_real(layer, inputs)
    if "float" in dtype:
        return inputs
    return ops.cast(inputs, layer.compute_dtype)


def check_tensor(layer, inputs):
    if not hasattr(inputs, "shape"):
        raise ValueError(
            f"`{type(layer).__qualname__}` takes one tensor. Received: inputs of type "
            f"{type(inputs).__name__}"
        )


def check_real(layer, inputs):
    """The dtype of one tensor of real numbers."""
    check_tensor(layer, inputs)
    dtype = keras.backend.standardize_dtype(inputs.dtype)
    if not ("float" in dtype or "int" in dtype or dtype == "bool"):
        raise ValueError(
            f"`{type(layer).__qualname__}` takes real numbers. Received: inputs of dtype {dtype}"
        )
    return dtype
