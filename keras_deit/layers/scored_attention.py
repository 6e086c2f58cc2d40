"""A block that returns attention scores, for graphs where its first call did not."""

import keras


@keras.saving.register_keras_serializable(package="keras_deit")
class ScoredAttention(keras.layers.Wrapper):
    """Wraps a block and returns `(outputs, scores)`, or `(outputs, scores, token_sizes)` if it
    merges tokens.

    It is another layer with the same weights. Keras 3.15 refuses a model through a second call of
    the block itself with more outputs (docs/troubleshooting.md).

    Args:
        layer: `TransformerBlock`, `MergingTransformerBlock` or `MultiHeadSelfAttention`.
        **kwargs: arguments of `keras.layers.Layer`. The name defaults to that of `layer` with
            "_with_scores", the dtype policy to that of `layer`.
    """

    def __init__(self, layer, **kwargs):
        super().__init__(
            layer, **{"name": f"{layer.name}_with_scores", "dtype": layer.dtype_policy, **kwargs}
        )

    def call(self, inputs, token_sizes=None, training=None, mask=None, rotation=None):
        # A layer takes one of them.
        given = {"token_sizes": token_sizes, "rotation": rotation}
        given = {name: value for name, value in given.items() if value is not None}
        return self.layer(
            inputs, **given, training=training, return_attention_scores=True, mask=mask
        )

    def compute_mask(self, inputs, previous_mask=None):
        return previous_mask

    def compute_output_shape(self, input_shape):
        return self.layer.compute_output_shape(input_shape, return_attention_scores=True)

    def compute_output_spec(
        self, inputs, token_sizes=None, training=None, mask=None, rotation=None
    ):
        shapes = self.compute_output_shape(inputs.shape)
        return tuple(keras.KerasTensor(shape, dtype=self.layer.compute_dtype) for shape in shapes)
