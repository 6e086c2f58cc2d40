"""Argument checks that constructors share. `check_*` functions of one value return it."""

import math
import numbers

import keras
import numpy as np

_LARGEST_SIZE = 2**63 - 1
_NO_SIZES = (str, dict, tuple, list, np.ndarray)


def check_positive_int(name, value):
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise ValueError(f"`{name}` must be a positive integer. Received: {name}={value!r}")
    return _check_size(name, value)


def check_non_negative_int(name, value):
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 0:
        raise ValueError(f"`{name}` must be a non-negative integer. Received: {name}={value!r}")
    return _check_size(name, value)


def check_seed(name, value):
    return None if value is None else check_non_negative_int(name, value)


def _check_size(name, value):
    if value > _LARGEST_SIZE:
        raise ValueError(
            f"`{name}` must be at most {_LARGEST_SIZE}, the largest size of a tensor. "
            f"Received: {name}={value!r}"
        )
    return int(value)


def check_rate(name, value):
    if not _is_finite(value) or not 0 <= value < 1:
        raise ValueError(
            f"`{name}` must be a probability in [0, 1); use 0.0 to switch it off. "
            f"Received: {name}={value!r}"
        )
    return float(value)


def check_keep_rate(name, value):
    if not _is_finite(value) or not 0 < value <= 1:
        raise ValueError(
            f"`{name}` must be a number in (0, 1]; use 1.0 to keep all tokens. "
            f"Received: {name}={value!r}"
        )
    return float(value)


def check_fraction(name, value):
    if not _is_finite(value) or not 0 <= value <= 1:
        raise ValueError(f"`{name}` must be a number in [0, 1]. Received: {name}={value!r}")
    return float(value)


def check_decay(name, value):
    if not _is_finite(value) or not 0 < value <= 1:
        raise ValueError(
            f"`{name}` must be a number in (0, 1]; use 1.0 for no decay. Received: {name}={value!r}"
        )
    return float(value)


def check_positive_number(name, value):
    if not _is_finite(value) or value <= 0:
        raise ValueError(f"`{name}` must be a number above 0. Received: {name}={value!r}")
    return float(value)


def check_non_negative_number(name, value):
    if not _is_finite(value) or value < 0:
        raise ValueError(f"`{name}` must be a number, 0 or more. Received: {name}={value!r}")
    return float(value)


def check_bool(name, value):
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"`{name}` must be `True` or `False`. Received: {name}={value!r}")
    return bool(value)


def check_choice(name, value, choices):
    # Not everything can be compared with the choices: an array answers for each element.
    is_simple = isinstance(value, (str, numbers.Integral)) and not isinstance(value, bool)
    if not is_simple or value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"`{name}` must be one of {listed}. Received: {name}={value!r}")
    return value


def check_activation(name, value):
    """The activation function of a name, a function or a config."""
    if isinstance(value, dict) and "class_name" in value:
        return keras.activations.get(value)  # Keras says which of its objects is missing
    try:
        return keras.activations.get(value)
    except Exception as error:
        raise ValueError(
            f"`{name}` must be the name of one of Keras' activations, a function, or `None`. "
            f"Received: {name}={value!r}"
        ) from error


def check_numbers(name, value):
    """One number or a sequence of them, as a tuple of floats."""
    if isinstance(value, np.ndarray) and value.ndim <= 1:
        value = value.tolist()
    values = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    try:
        if not values or any(
            isinstance(v, bool) or not isinstance(v, numbers.Real) for v in values
        ):
            raise TypeError
        return tuple(map(float, values))
    except (TypeError, OverflowError):  # an integer of more than 308 digits
        raise ValueError(
            f"`{name}` must be a number, or one for each channel. Received: {name}={value!r}"
        ) from None


def check_pair(name, value):
    """A (height, width) pair of positive ints; one int stands for both."""
    sides = as_pair(value)
    if len(sides) != 2:
        raise ValueError(
            f"`{name}` must be a positive integer, or a pair of them: vertical, then horizontal. "
            f"Received: {name}={value!r}"
        )
    return tuple(check_positive_int(name, side) for side in sides)


def as_pair(size):
    """(height, width), unchecked; one value stands for both."""
    return tuple(size) if isinstance(size, (tuple, list)) else (size, size)


def check_token_sequence(layer, input_shape):
    """Refuses anything but (batch, tokens, hidden_dim) with a known `hidden_dim`."""
    check_shape(layer, input_shape)
    if len(input_shape) != 3 or input_shape[-1] is None:
        raise ValueError(
            f"`{layer}` takes tokens of shape (batch, tokens, hidden_dim) with a known "
            f"`hidden_dim`. Received: input shape {tuple(input_shape)}"
        )
    check_not_zero(layer, "token", input_shape)


def check_tokens_or_map(layer, input_shape):
    """Refuses anything but tokens or a feature map with a known `hidden_dim`."""
    check_shape(layer, input_shape)
    if len(input_shape) not in (3, 4) or input_shape[-1] is None:
        raise ValueError(
            f"`{layer}` takes tokens of shape (batch, tokens, hidden_dim), or a feature map of "
            "shape (batch, rows, columns, hidden_dim), with a known `hidden_dim`. "
            f"Received: input shape {tuple(input_shape)}"
        )
    check_not_zero(layer, "token", input_shape)


def check_shape(layer, input_shape):
    """Refuses what is not the shape of one tensor."""
    # PyTorch's exporter and JAX have sizes that are expressions, which may have any attribute.
    is_one = hasattr(input_shape, "__len__") and not isinstance(input_shape, (str, dict))
    if not is_one or any(isinstance(size, _NO_SIZES) for size in input_shape):
        raise ValueError(f"`{layer}` takes one tensor. Received: input shape {input_shape!r}")


def check_not_zero(layer, part, input_shape):
    """Refuses a batch without a single `part`. A batch of no samples is fine."""
    # PyTorch and JAX have sizes that are expressions: those are not zero.
    if any(isinstance(size, int) and size == 0 for size in input_shape[1:]):
        raise ValueError(
            f"`{layer}` needs at least one {part}, with at least one value. Received: input shape "
            f"{tuple(input_shape)}"
        )


def check_not_float16(model):
    """Refuses to train a model whose weights would become NaN."""
    if any(
        keras.backend.standardize_dtype(variable.dtype) == "float16"
        for variable in model.trainable_variables
    ):
        raise ValueError(
            "Weights in float16 cannot be trained: the optimizer's small numbers, such as Adam's "
            "`epsilon`, are 0 in float16, and the weights become NaN. Use "
            '`dtype="mixed_float16"`, which keeps the weights in float32. To evaluate without '
            "training, use `compile(optimizer=None, ...)`. Received: trainable weights of dtype "
            "float16"
        )


def _is_finite(value):
    """Whether `value` is a number that fits into a finite float."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer of more than 308 digits
        return False
