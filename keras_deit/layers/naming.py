"""Default names of layers and models."""

import keras


def unique_name(prefix):
    """A unique name the way Keras numbers them. Keras itself would derive "dei_t" from "DeiT"."""
    number = keras.backend.get_uid(prefix)
    return prefix if number == 1 else f"{prefix}_{number - 1}"
