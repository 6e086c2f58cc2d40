"""Token merging (ToMe)."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_deit.arguments import (
    check_non_negative_int,
    check_positive_int,
    check_token_sequence,
)
from keras_deit.layers import kernels
from keras_deit.layers.inputs import as_floats
from keras_deit.layers.masks import refuse_mask


@keras.saving.register_keras_serializable(package="keras_deit")
class TokenMerging(keras.layers.Layer):
    """Merges the most similar pairs of tokens, so that later layers process fewer tokens.

    The patch tokens are split into two sets, alternately. Each token of the first set is matched
    with the most similar token of the second, by cosine similarity of their keys. The
    `num_merged_tokens` most similar pairs are replaced by their means, weighted by token size.
    Prefix tokens stay first and unchanged. The order of the other tokens changes, which attention
    does not depend on.

    Args:
        num_merged_tokens: int. Number of tokens to remove, at most half of the patch
            tokens.
        num_prefix_tokens: int, 0 or more. Number of tokens at the start that are never merged.
            Defaults to 1.

    Call arguments:
        inputs: tokens.
        keys: vectors that similarity is computed from; a block uses the mean of its heads'
            attention keys. Defaults to `None`, which uses the tokens.
        token_sizes: number of patches that each token stands for. Defaults to `None`, which means 1
            each.
        mask: refused, because merged tokens may be padding or not.

    Input shape:
        inputs: (batch, tokens, hidden_dim), with a known number of tokens. keys: (batch, tokens,
            head_dim). token_sizes: (batch, tokens).

    Output shape:
        `(outputs, token_sizes)` of shapes (batch, tokens - merged, hidden_dim) and
        (batch, tokens - merged).

    Raises:
        ValueError: if an argument is out of range, the number of tokens is unknown, or there is a
            mask.

    Example:

    >>> tokens = keras.random.uniform((2, 7, 64))
    >>> outputs, token_sizes = TokenMerging(num_merged_tokens=2)(tokens)
    >>> outputs.shape
    (2, 5, 64)

    Reference: [Bolya et al., 2023](https://arxiv.org/abs/2210.09461), section 3.
    """

    def __init__(self, num_merged_tokens: int, num_prefix_tokens: int = 1, **kwargs: Any) -> None:
        num_merged_tokens = check_positive_int("num_merged_tokens", num_merged_tokens)
        num_prefix_tokens = check_non_negative_int("num_prefix_tokens", num_prefix_tokens)
        super().__init__(**kwargs)
        self.num_merged_tokens = num_merged_tokens
        self.num_prefix_tokens = num_prefix_tokens

    def build(self, input_shape):
        check_known_tokens("TokenMerging", input_shape)
        self.input_spec = keras.InputSpec(ndim=3)
        self.built = True

    def call(self, inputs, keys=None, token_sizes=None, mask=None):
        inputs = as_floats(self, inputs)
        refuse_mask(self, mask)
        num_merged = self._num_merged(inputs.shape)
        if token_sizes is None:
            token_sizes = ops.ones(ops.shape(inputs)[:2])
        token_sizes = ops.cast(token_sizes, self.compute_dtype)
        if not num_merged:  # fewer than two patch tokens
            return inputs, token_sizes
        keys = ops.normalize(inputs if keys is None else keys, axis=-1)
        merge = _merge_all_at_once if kernels.copies_rows_one_by_one(inputs) else _merge_what_moves
        return merge(inputs, keys, token_sizes, self.num_prefix_tokens, num_merged)

    def _num_merged(self, shape):
        check_known_tokens("TokenMerging", shape)
        return max(0, min(self.num_merged_tokens, (shape[1] - self.num_prefix_tokens) // 2))

    def compute_output_shape(self, input_shape):
        num_merged = self._num_merged(input_shape)
        batch, tokens, hidden_dim = input_shape
        tokens -= num_merged
        return (batch, tokens, hidden_dim), (batch, tokens)

    def compute_output_spec(self, inputs, keys=None, token_sizes=None, mask=None):
        refuse_mask(self, mask)
        return tuple(
            keras.KerasTensor(shape, dtype=self.compute_dtype)
            for shape in self.compute_output_shape(inputs.shape)
        )

    def get_config(self):
        return {
            **super().get_config(),
            "num_merged_tokens": self.num_merged_tokens,
            "num_prefix_tokens": self.num_prefix_tokens,
        }


def check_known_tokens(layer, shape):
    """Raises, in the name of `layer`, if `shape` is not that of a known number of tokens."""
    check_token_sequence(layer, shape)
    if shape[1] is None:
        raise ValueError(
            f"`{layer}` needs a known number of tokens: use images of a fixed size. "
            f"Received: input shape {tuple(shape)}"
        )


# Two forms of the same computation. On a CPU, the first takes half the time of the second
# (benchmarks/LOG.md). On a TPU, where strided slices are copies, a model that merges 13 tokens in
# each block takes 27.6M cycles with the first and 21.8M with the second (compiler's estimates).


def _merge_what_moves(inputs, keys, token_sizes, prefix, merged):
    """Separates sources (every other patch token) from targets, with strided slices."""
    # (B, sources, targets)
    similarity = ops.matmul(keys[:, prefix::2], ops.transpose(keys[:, prefix + 1 :: 2], (0, 2, 1)))
    _, sources, targets = similarity.shape
    kept = sources - merged
    best, partner = kernels.best_of_each_row(similarity)  # (B, sources)
    rank = ranks(best)
    # The new place of each source: sources that are not merged come before the targets.
    place = ops.where(rank < merged, kept + partner, rank - merged)
    # (B, kept + targets, sources)
    here = ops.equal(place[:, None], np.arange(kept + targets, dtype="int32")[:, None])
    shares = ops.cast(here, inputs.dtype) * token_sizes[:, None, prefix::2]

    moved_sizes, target_sizes = ops.sum(shares, axis=-1), token_sizes[:, prefix + 1 :: 2]
    new_sizes = ops.concatenate(
        [moved_sizes[:, :kept], moved_sizes[:, kept:] + target_sizes], axis=1
    )
    # As one matrix product, because gathering rows is slower on a CPU.
    moved = ops.matmul(shares / new_sizes[..., None], inputs[:, prefix::2])
    stayed = inputs[:, prefix + 1 :: 2] * (target_sizes / new_sizes[:, kept:])[..., None]
    outputs = ops.concatenate(
        [inputs[:, :prefix], moved[:, :kept], moved[:, kept:] + stayed], axis=1
    )
    return outputs, ops.concatenate([token_sizes[:, :prefix], new_sizes], axis=1)


def _merge_all_at_once(inputs, keys, token_sizes, prefix, merged):
    """Computes with all tokens and masks everything but pairs of a source and a target."""
    tokens = inputs.shape[1]
    place = np.arange(tokens) - prefix
    is_source, is_target = (place >= 0) & (place % 2 == 0), (place >= 0) & (place % 2 == 1)
    similarity = ops.matmul(keys, ops.transpose(keys, (0, 2, 1)))  # (B, T, T)
    # Below every cosine
    similarity = ops.where(is_source[:, None] & is_target, similarity, -2.0)
    best, partner = kernels.best_of_each_row(similarity)  # (B, T)
    rank = ranks(best)
    # The new row of each token: prefix tokens, sources that are not merged, targets.
    first_target = prefix + int(is_source.sum()) - merged
    rows = np.where(is_target, first_target + place // 2, np.arange(tokens)).astype("int32")
    row = ops.where(rank < merged, first_target + (partner - prefix) // 2, prefix + rank - merged)
    row = ops.where(is_source, row, rows)
    # (B, T - merged, T)
    here = ops.equal(row[:, None], np.arange(tokens - merged, dtype="int32")[:, None])
    shares = ops.cast(here, inputs.dtype) * token_sizes[:, None]
    new_sizes = ops.sum(shares, axis=-1)
    return ops.matmul(shares / new_sizes[..., None], inputs), new_sizes


def ranks(values):
    """The rank of each value, (B, S); 0 is the highest, and equal values rank in order.

    Counted rather than sorted, because not every runtime for exported models can sort.
    """
    earlier = np.tri(values.shape[1], k=-1, dtype=bool)
    ahead = ops.where(
        earlier, values[:, None] >= values[..., None], values[:, None] > values[..., None]
    )
    return ops.sum(ops.cast(ahead, "int32"), axis=-1)
