"""The attention scores of a block whose first call in a graph was without them."""

import keras


@keras.saving.register_keras_serializable(package="keras_deit")
class ScoredAttention(keras.layers.Wrapper):
    """A block that returns its scores: `(outputs, scores)`, or `(outputs, scores, token_sizes)`
    where it merges tokens.

    Another layer of the same weights, as Keras 3.15 refuses a graph through a later call of the
    block itself (docs/troubleshooting.md).

    Args:
        layer: `TransformerBlock`, `MergingTransformerBlock` or `MultiHeadSelfAttention`.
        **kwargs: as of any Keras layer. By default named `"block_0_with_scores"`, with the dtype
            policy of `layer`.
    """

    def __init__(self, layer, **kwargs):
        super().__init__(
            layer, **{"name": f"{layer.name}_with_scores", "dtype": layer.dtype_policy, **kwargs}
        )

    def call(self, inputs, token_sizes=None, training=None):
        merged = {} if token_sizes is None else {"token_sizes": token_sizes}
        return self.layer(inputs, **merged, training=training, return_attention_scores=True)

    def compute_output_shape(self, input_shape):
        return self.layer.compute_output_shape(input_shape, return_attention_scores=True)

    def compute_output_spec(self, inputs, token_sizes=None, training=None):
        shapes = self.compute_output_shape(inputs.shape)
        return tuple(keras.KerasTensor(shape, dtype=self.layer.compute_dtype) for shape in shapes)
