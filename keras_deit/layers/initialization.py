"""DeiT's initialization: truncated normal of standard deviation 0.02 for every kernel, token and
position; zero biases.
"""

import contextlib
import contextvars

import keras

_weights_follow = contextvars.ContextVar("weights_follow", default=False)


def deit_initializer():
    if _weights_follow.get():
        return keras.initializers.Zeros()
    # A new one for each weight: a Keras initializer with a fixed seed would repeat its values.
    return keras.initializers.TruncatedNormal(stddev=0.02)


@contextlib.contextmanager
def weights_follow():
    """Layers made within start at zero, for trained weights to take their place: random values take
    seconds, and are lost.
    """
    token = _weights_follow.set(True)
    try:
        yield
    finally:
        _weights_follow.reset(token)
