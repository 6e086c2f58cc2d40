"""Checks that every constructor shares: what was expected, what came, what to do."""

import math
import numbers

import numpy as np


def check_positive_int(name, value):
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise ValueError(f"`{name}` must be a positive integer. Received: {name}={value!r}")
    return int(value)


def check_non_negative_int(name, value):
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 0:
        raise ValueError(f"`{name}` must be 0 or a positive integer. Received: {name}={value!r}")
    return int(value)


def check_rate(name, value):
    if not _is_finite(value) or not 0 <= value < 1:
        raise ValueError(
            f"`{name}` must be a probability in [0, 1); use 0.0 to switch it off. Received: "
            f"{name}={value!r}"
        )
    return float(value)


def check_share(name, value):
    if not _is_finite(value) or not 0 <= value <= 1:
        raise ValueError(f"`{name}` must be a share in [0, 1]. Received: {name}={value!r}")
    return float(value)


def check_positive_number(name, value):
    if not _is_finite(value) or value <= 0:
        raise ValueError(f"`{name}` must be a number above 0. Received: {name}={value!r}")
    return float(value)


def check_bool(name, value):
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"`{name}` must be `True` or `False`. Received: {name}={value!r}")
    return bool(value)


def check_choice(name, value, choices):
    if value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"`{name}` must be one of {listed}. Received: {name}={value!r}")
    return value


def check_pair(name, value):
    """An int, or a (height, width) pair of ints, as a pair."""
    pair = (value, value) if isinstance(value, numbers.Integral) else value
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise ValueError(
            f"`{name}` must be a positive integer or a (height, width) pair of them. Received: "
            f"{name}={value!r}"
        )
    return tuple(check_positive_int(name, side) for side in pair)


def check_token_sequence(layer, input_shape):
    """(batch, tokens, width) with a known width."""
    if len(input_shape) != 3 or input_shape[-1] is None:
        raise ValueError(
            f"`{layer}` takes tokens of shape (batch, tokens, hidden_dim) with a known "
            "`hidden_dim`. "
            f"Received: input shape {tuple(input_shape)}"
        )


def _is_finite(value):
    """Whether it is a number that a float can hold."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer of more than 308 digits
        return False
