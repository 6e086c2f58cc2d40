"""The base class of the backbone and the classifier."""

import keras

from keras_deit.presets import catalog


class PresetModel(keras.Model):
    """Base of the models that `from_preset` creates and `save_to_preset` saves."""

    presets = catalog.METADATA
    _origin = None  # handle of the preset that the weights come from, for the model card

    @classmethod
    def from_config(cls, config, custom_objects=None):
        # `keras.Model` would rebuild the graph from its layers.
        return cls(**config)
