"""The base class of the backbone and the classifier."""

import keras

from keras_deit.models.input_checks import CheckedInputs
from keras_deit.presets import catalog


class PresetModel(CheckedInputs, keras.Model):
    """Base of the models that `from_preset` creates and `save_to_preset` saves."""

    presets = catalog.METADATA
    _origin = None  # handle of the preset that the weights come from, for the model card

    def call(self, inputs, training=None, mask=None):
        # Only what is known without running anything. TensorFlow fails on an empty batch.
        self._check_inputs(inputs)
        return super().call(inputs, training=training, mask=mask)

    @classmethod
    def from_config(cls, config, custom_objects=None):
        # `keras.Model` would rebuild the graph from its layers.
        return cls(**config)
