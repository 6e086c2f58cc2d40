"""DeiT's initialization: truncated normal of standard deviation 0.02 for every kernel, token and position; zero biases."""

import keras


def deit_initializer():
    # A new one for each weight: a Keras initializer with a fixed seed would repeat its values.
    return keras.initializers.TruncatedNormal(stddev=0.02)
