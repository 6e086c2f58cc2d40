"""Names of layers and models that were given none."""

import keras


def unique_name(prefix):
    """As Keras names its layers, but that it would spell "dei_t"."""
    number = keras.backend.get_uid(prefix)
    return prefix if number == 1 else f"{prefix}_{number - 1}"
