"""The transformer block that merges tokens."""

from typing import Any

import keras
from keras import ops

from keras_deit.layers import kernels
from keras_deit.layers.inputs import as_floats
from keras_deit.layers.masks import refuse_mask
from keras_deit.layers.multi_head_self_attention import output_specs
from keras_deit.layers.token_merging import TokenMerging, check_known_tokens
from keras_deit.layers.transformer_block import TransformerBlock


@keras.saving.register_keras_serializable(package="keras_deit", name="MergingTransformerBlock")
class MergingTransformerBlock(TransformerBlock):
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
        self.supports_masking = False

    def build(self, input_shape):
        check_known_tokens("MergingTransformerBlock", input_shape)
        super().build(input_shape)
        self.token_merging.build(input_shape)

    def call(
        self,
        inputs,
        token_sizes=None,
        training=None,
        return_attention_scores=False,
        num_queries=None,
        mask=None,
    ):
        inputs = as_floats(self, inputs)
        refuse_mask(self, mask)
        self._check_call(inputs.shape, return_attention_scores, num_queries, None)
        check_known_tokens("MergingTransformerBlock", inputs.shape)

        def compute(inputs, token_sizes=None):
            query, key, value = self.attention.heads(
                kernels.layer_norm(self.attention_norm, inputs), num_queries=num_queries
            )
            attended = self.attention.attend(
                query,
                key,
                value,
                token_sizes,
                training=training,
                return_attention_scores=return_attention_scores,
            )
            branch, *scores = attended if return_attention_scores else (attended,)
            if num_queries is None:
                x = self._add_attention(inputs, branch, training)
                x, token_sizes = self.token_merging(
                    x, ops.mean(key, axis=2), token_sizes=token_sizes
                )
            else:
                x = self._add_attention(inputs[:, :num_queries], branch, training)
                token_sizes = (
                    ops.ones_like(x[..., 0])
                    if token_sizes is None
                    else token_sizes[:, :num_queries]
                )
            return (self._add_mlp(x, training), *scores, token_sizes)

        return self._run(
            compute,
            *([inputs] if token_sizes is None else [inputs, token_sizes]),
            training=training,
        )

    def compute_output_shape(self, input_shape, return_attention_scores=False, num_queries=None):
        check_known_tokens("MergingTransformerBlock", input_shape)
        shapes = self.attention.compute_output_shape(input_shape, True, num_queries)
        outputs_shape, scores_shape = shapes
        if num_queries is None:
            outputs_shape, _ = self.token_merging.compute_output_shape(input_shape)
        scores = (scores_shape,) if return_attention_scores else ()
        return (outputs_shape, *scores, outputs_shape[:2])

    def compute_output_spec(
        self,
        inputs,
        token_sizes=None,
        training=None,
        return_attention_scores=False,
        num_queries=None,
        mask=None,
    ):
        refuse_mask(self, mask)
        self._check_call(inputs.shape, return_attention_scores, num_queries, None)
        return output_specs(
            self, self.compute_output_shape(inputs.shape, return_attention_scores, num_queries)
        )

    def get_config(self):
        return {
            **super().get_config(),
            "num_merged_tokens": self.num_merged_tokens,
            "num_prefix_tokens": self.num_prefix_tokens,
        }


# Keras 3.15 stores a layer's weights under the name of its class. With the same name, a model that
# merges tokens loads the weights of one that does not, and those that version 0.1 saved.
MergingTransformerBlock.__name__ = TransformerBlock.__name__
