"""Patch tokens in their places in the image, for a size that only the image knows."""

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="keras_deit")
class TokensToMap(keras.layers.Layer):
    """Reshapes patch tokens to the rows and columns of a feature map.

    Args:
        num_prefix_tokens: int. Number of tokens before the patches, which are left out.
        data_format: `"channels_last"` or `"channels_first"`, of the output.

    Call arguments:
        tokens: (batch, num_prefix_tokens + rows * columns, hidden_dim).
        feature_map: (batch, rows, columns, channels). Only its shape matters.

    Output shape:
        (batch, rows, columns, hidden_dim), or (batch, hidden_dim, rows, columns) with
        `data_format="channels_first"`.
    """

    def __init__(self, num_prefix_tokens, data_format, **kwargs):
        super().__init__(**kwargs)
        self.num_prefix_tokens = num_prefix_tokens
        self.data_format = data_format

    def call(self, tokens, feature_map):
        batch, rows, columns, _ = ops.shape(feature_map)
        patches = tokens[:, self.num_prefix_tokens :]
        patches = ops.reshape(patches, (batch, rows, columns, tokens.shape[-1]))
        if self.data_format == "channels_first":
            return ops.transpose(patches, (0, 3, 1, 2))
        return patches

    def compute_output_shape(self, tokens_shape, feature_map_shape):
        batch, rows, columns, _ = feature_map_shape
        if self.data_format == "channels_first":
            return (batch, tokens_shape[-1], rows, columns)
        return (batch, rows, columns, tokens_shape[-1])

    def get_config(self):
        return {
            **super().get_config(),
            "num_prefix_tokens": self.num_prefix_tokens,
            "data_format": self.data_format,
        }
