"""Token selection (EViT)."""

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_deit.arguments import check_keep_rate, check_non_negative_int
from keras_deit.layers.inputs import as_floats
from keras_deit.layers.masks import refuse_mask
from keras_deit.layers.token_merging import check_known_tokens, ranks


@keras.saving.register_keras_serializable(package="keras_deit")
class TokenSelection(keras.layers.Layer):
    """Keeps the patch tokens with the highest scores, and fuses the others into one token.

    Of N patch tokens, the `ceil(keep_rate * N)` with the highest scores stay unchanged, highest
    first. The others become one token after them, `sum(score * token)`, which is not divided by the
    sum of the scores. Prefix tokens stay first and unchanged. If all patch tokens would be kept,
    the layer returns its inputs.

    Args:
        keep_rate: float in (0, 1]. Share of the patch tokens to keep, rounded up to a whole number
            of tokens.
        num_prefix_tokens: int, 0 or more. Number of tokens at the start that always stay.
            Defaults to 1.

    Call arguments:
        inputs: tokens.
        scores: importance of each token, 0 or more. A block uses the attention of the class token.
            Scores of prefix tokens are not used.
        mask: refused, because selected tokens may be padding or not.

    Input shape:
        inputs: (batch, tokens, hidden_dim), with a known number of tokens. scores: (batch, tokens).

    Output shape:
        (batch, num_prefix_tokens + ceil(keep_rate * N) + 1, hidden_dim).

    Raises:
        ValueError: if an argument is out of range, the number of tokens is unknown, the shapes do
            not fit, or there is a mask.

    Example:

    >>> tokens, scores = keras.random.uniform((2, 9, 64)), keras.random.uniform((2, 9))
    >>> TokenSelection(keep_rate=0.5)(tokens, scores).shape  # 1 of prefix, 4 kept, 1 fused
    (2, 6, 64)

    Reference: [Liang et al., 2022](https://arxiv.org/abs/2202.07800), section 3; youweiliang/evit,
    evit.py, commit 5ca95a7.
    """

    def __init__(self, keep_rate: float, num_prefix_tokens: int = 1, **kwargs: Any) -> None:
        keep_rate = check_keep_rate("keep_rate", keep_rate)
        num_prefix_tokens = check_non_negative_int("num_prefix_tokens", num_prefix_tokens)
        super().__init__(**kwargs)
        self.keep_rate = keep_rate
        self.num_prefix_tokens = num_prefix_tokens

    def build(self, input_shape):
        check_known_tokens("TokenSelection", input_shape)
        self.built = True

    def call(self, inputs, scores, mask=None):
        inputs = as_floats(self, inputs)
        refuse_mask(self, mask)
        kept = self._num_kept(inputs.shape)
        _check_scores(scores, inputs.shape)
        prefix = self.num_prefix_tokens
        if kept is None:
            return inputs
        scores = ops.cast(scores, inputs.dtype)[:, prefix:]  # (B, N)
        rank = ranks(scores)
        # (B, kept, N)
        here = ops.equal(rank[:, None], np.arange(kept, dtype="int32")[:, None])
        fused = ops.where(rank < kept, 0.0, scores)
        # As one matrix product, because gathering rows is slower on a CPU.
        shares = ops.concatenate([ops.cast(here, inputs.dtype), fused[:, None]], axis=1)
        return ops.concatenate([inputs[:, :prefix], ops.matmul(shares, inputs[:, prefix:])], axis=1)

    def _num_kept(self, shape):
        """Number of patch tokens that stay, or `None` if that is all of them."""
        check_known_tokens("TokenSelection", shape)
        patches = shape[1] - self.num_prefix_tokens
        kept = math.ceil(self.keep_rate * patches)
        return kept if kept < patches else None

    def compute_output_shape(self, input_shape):
        batch, tokens, hidden_dim = input_shape
        kept = self._num_kept(input_shape)
        tokens = tokens if kept is None else self.num_prefix_tokens + kept + 1
        return (batch, tokens, hidden_dim)

    def compute_output_spec(self, inputs, scores, mask=None):
        refuse_mask(self, mask)
        shape = self.compute_output_shape(inputs.shape)
        _check_scores(scores, inputs.shape)
        return keras.KerasTensor(shape, dtype=self.compute_dtype)

    def get_config(self):
        return {
            **super().get_config(),
            "keep_rate": self.keep_rate,
            "num_prefix_tokens": self.num_prefix_tokens,
        }


def _check_scores(scores, input_shape):
    shape = tuple(getattr(scores, "shape", ()))
    if len(shape) != 2 or shape[1] != input_shape[1]:
        raise ValueError(
            "`scores` of `TokenSelection` must have shape (batch, tokens): one number for each "
            f"token. Received: scores of shape {shape}, input shape {tuple(input_shape)}"
        )
