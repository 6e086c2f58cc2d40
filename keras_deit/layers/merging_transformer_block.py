"""The transformer block that merges tokens."""

from typing import Any

import keras
from keras import ops

from keras_deit.layers.reducing_transformer_block import ReducingTransformerBlock
from keras_deit.layers.token_merging import TokenMerging
from keras_deit.layers.transformer_block import TransformerBlock


@keras.saving.register_keras_serializable(package="keras_deit", name="MergingTransformerBlock")
class MergingTransformerBlock(ReducingTransformerBlock):
    """A `TransformerBlock` that merges similar tokens between attention and MLP.

    `x = x + attention(norm(x), token_sizes)`, then `x, token_sizes = merge(x, token_sizes)`, then
    `x = x + mlp(norm(x))`, with drop path and LayerScale as in `TransformerBlock`. It has the same
    weights, is faster and slightly less accurate. `TokenMerging` selects the tokens by the
    similarity of their attention keys.

    Args:
        num_heads, intermediate_dim: see `TransformerBlock`.
        num_merged_tokens: int. Number of tokens to remove, at most half of the patch
            tokens.
        num_prefix_tokens: int, 0 or more. Number of tokens at the start that are never merged.
            Defaults to 1.
        **kwargs: the other arguments of `TransformerBlock`.

    Call arguments:
        inputs: tokens.
        token_sizes: number of patches that each token stands for, from the previous block. Defaults
            to `None`, which means 1 each.
        training: bool. Whether dropout and drop path are active.
        return_attention_scores: bool. Whether to return the scores too. Defaults to `False`.
        num_queries: int. Computes outputs for the first `num_queries` tokens only, and merges none
            of them. Defaults to `None`, which computes all outputs.
        mask: refused, because merged tokens may be padding or not.

    Input shape:
        inputs: (batch, tokens, hidden_dim), with a known number of tokens. token_sizes: (batch,
            tokens).

    Output shape:
        `(outputs, token_sizes)` of shapes (batch, tokens - merged, hidden_dim) and
        (batch, tokens - merged). With `return_attention_scores=True`,
        `(outputs, scores, token_sizes)`, with scores (batch, num_heads, tokens, tokens). With
        `num_queries`, outputs, token_sizes and the query axis of scores have that length.

    Raises:
        ValueError: if an argument is out of range, the number of tokens is unknown, `num_heads`
            does not divide `hidden_dim`, or there is a mask.

    Example:

    >>> tokens = keras.random.uniform((2, 7, 64))
    >>> block = MergingTransformerBlock(num_heads=4, intermediate_dim=256, num_merged_tokens=2)
    >>> outputs, token_sizes = block(tokens)
    >>> outputs, token_sizes = block(outputs, token_sizes)
    >>> outputs.shape
    (2, 3, 64)

    Reference: [Bolya et al., 2023](https://arxiv.org/abs/2210.09461), section 3.
    """

    def __init__(
        self,
        num_heads: int,
        intermediate_dim: int,
        num_merged_tokens: int,
        num_prefix_tokens: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_heads, intermediate_dim, **kwargs)
        self.token_merging = TokenMerging(
            num_merged_tokens, num_prefix_tokens, **self.sublayer("token_merging")
        )
        self.num_merged_tokens = self.token_merging.num_merged_tokens
        self.num_prefix_tokens = self.token_merging.num_prefix_tokens

    def build(self, input_shape):
        super().build(input_shape)
        self.token_merging.build(input_shape)

    def _reduce(self, x, query, key, token_sizes):
        return self.token_merging(x, ops.mean(key, axis=2), token_sizes=token_sizes)

    def _first(self, x, token_sizes):
        if token_sizes is None:
            return x, ops.ones_like(x[..., 0])
        return x, token_sizes[:, : x.shape[1]]

    def _reduced_shape(self, input_shape):
        return self.token_merging.compute_output_shape(input_shape)[0]

    def call(
        self,
        inputs,
        token_sizes=None,
        training=None,
        return_attention_scores=False,
        num_queries=None,
        mask=None,
    ):
        return self._compute(
            inputs, token_sizes, training, return_attention_scores, num_queries, mask
        )

    def compute_output_shape(self, input_shape, return_attention_scores=False, num_queries=None):
        shapes = self._shapes(input_shape, return_attention_scores, num_queries)
        return (*shapes, shapes[0][:2])

    def compute_output_spec(
        self,
        inputs,
        token_sizes=None,
        training=None,
        return_attention_scores=False,
        num_queries=None,
        mask=None,
    ):
        return self._specs(inputs, return_attention_scores, num_queries, mask)

    def get_config(self):
        return {
            **super().get_config(),
            "num_merged_tokens": self.num_merged_tokens,
            "num_prefix_tokens": self.num_prefix_tokens,
        }


# Loads the weights of a `TransformerBlock` (see `ReducingTransformerBlock`), and those that version
# 0.1 saved.
MergingTransformerBlock.__name__ = TransformerBlock.__name__
