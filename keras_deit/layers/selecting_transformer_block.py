"""The transformer block that keeps the tokens that the class token attends to."""

from typing import Any

import keras
from keras import ops

from keras_deit.arguments import check_positive_int
from keras_deit.layers import kernels
from keras_deit.layers.reducing_transformer_block import ReducingTransformerBlock
from keras_deit.layers.token_selection import TokenSelection
from keras_deit.layers.transformer_block import TransformerBlock


@keras.saving.register_keras_serializable(package="keras_deit", name="SelectingTransformerBlock")
class SelectingTransformerBlock(ReducingTransformerBlock):
    """A `TransformerBlock` that keeps the patch tokens that the class token attends to most.

    `x = x + attention(norm(x))`, then `x = select(x, scores)`, then `x = x + mlp(norm(x))`, with
    drop path and LayerScale as in `TransformerBlock`. `scores` are the attention scores of the
    class token, the first token, averaged over heads. `TokenSelection` fuses the other patch tokens
    into one. The block has the weights of a `TransformerBlock`, and is made for training with it.

    Args:
        num_heads, intermediate_dim: see `TransformerBlock`.
        keep_rate: float in (0, 1]. Share of the patch tokens to keep, rounded up to a whole number
            of tokens. The fused token of an earlier block counts as a patch token.
        num_prefix_tokens: int, 1 or more. Number of tokens at the start that always stay, the
            class token first. Defaults to 1.
        **kwargs: the other arguments of `TransformerBlock`.

    Call arguments:
        inputs: tokens.
        training: bool. Whether dropout and drop path are active.
        return_attention_scores: bool. Whether to return `(outputs, scores)` instead of `outputs`.
            Defaults to `False`.
        num_queries: int. Computes outputs for the first `num_queries` tokens only, and removes none
            of them. Defaults to `None`, which computes all outputs.
        mask: refused, because selected tokens may be padding or not.

    Input shape:
        (batch, tokens, hidden_dim), with a known number of tokens.

    Output shape:
        outputs: (batch, num_prefix_tokens + ceil(keep_rate * N) + 1, hidden_dim) for N patch
        tokens, or the input shape if all would be kept. scores: (batch, num_heads, tokens, tokens).
        With `num_queries`, outputs and the query axis of scores have that length.

    Raises:
        ValueError: if an argument is out of range, the number of tokens is unknown, `num_heads`
            does not divide `hidden_dim`, or there is a mask.

    Example:

    >>> tokens = keras.random.uniform((2, 9, 64))
    >>> block = SelectingTransformerBlock(num_heads=4, intermediate_dim=256, keep_rate=0.5)
    >>> block(tokens).shape  # the class token, 4 of 8 patch tokens, the fused token
    (2, 6, 64)

    Reference: [Liang et al., 2022](https://arxiv.org/abs/2202.07800), section 3; youweiliang/evit,
    evit.py, commit 5ca95a7, which knows no distillation token.
    """

    def __init__(
        self,
        num_heads: int,
        intermediate_dim: int,
        keep_rate: float,
        num_prefix_tokens: int = 1,
        **kwargs: Any,
    ) -> None:
        num_prefix_tokens = check_positive_int("num_prefix_tokens", num_prefix_tokens)
        super().__init__(num_heads, intermediate_dim, **kwargs)
        self.token_selection = TokenSelection(
            keep_rate, num_prefix_tokens, **self.sublayer("token_selection")
        )
        self.keep_rate = self.token_selection.keep_rate
        self.num_prefix_tokens = self.token_selection.num_prefix_tokens

    def build(self, input_shape):
        super().build(input_shape)
        self.token_selection.build(input_shape)

    def _reduce(self, x, query, key, token_sizes):
        # The class token's scores alone, so that the attention itself can stay fused: (B, heads, T)
        scores = kernels.attention_scores(query[:, :1], key)[:, :, 0]
        return (self.token_selection(x, ops.mean(scores, axis=1)),)

    def _first(self, x, token_sizes):
        return (x,)

    def _reduced_shape(self, input_shape):
        return self.token_selection.compute_output_shape(input_shape)

    def call(
        self,
        inputs,
        training=None,
        return_attention_scores=False,
        num_queries=None,
        mask=None,
    ):
        outputs, *scores = self._compute(
            inputs, None, training, return_attention_scores, num_queries, mask
        )
        return (outputs, *scores) if scores else outputs

    def compute_output_shape(self, input_shape, return_attention_scores=False, num_queries=None):
        outputs, *scores = self._shapes(input_shape, return_attention_scores, num_queries)
        return (outputs, *scores) if scores else outputs

    def compute_output_spec(
        self,
        inputs,
        training=None,
        return_attention_scores=False,
        num_queries=None,
        mask=None,
    ):
        return self._specs(inputs, return_attention_scores, num_queries, mask)

    def get_config(self):
        return {
            **super().get_config(),
            "keep_rate": self.keep_rate,
            "num_prefix_tokens": self.num_prefix_tokens,
        }


# Loads the weights of a `TransformerBlock` (see `ReducingTransformerBlock`).
SelectingTransformerBlock.__name__ = TransformerBlock.__name__
