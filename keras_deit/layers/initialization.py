"""DeiT's initialization: truncated normal with standard deviation 0.02 for kernels, tokens and
positions; zeros for biases.
"""

import contextlib
import contextvars

import keras

_weights_follow = contextvars.ContextVar("weights_follow", default=False)


def deit_initializer():
    if _weights_follow.get():
        return keras.initializers.Zeros()
    # A new initializer for each weight: one object would give equal shapes equal values.
    return keras.initializers.TruncatedNormal(stddev=0.02)


@contextlib.contextmanager
def weights_follow():
    """Initializes layers that are created inside with zeros, because trained weights will follow.

    Drawing random values that are overwritten takes seconds for a large model.
    """
    token = _weights_follow.set(True)
    try:
        yield
    finally:
        _weights_follow.reset(token)
