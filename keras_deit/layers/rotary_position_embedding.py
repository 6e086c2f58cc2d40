"""Rotary positions of patches in two dimensions."""

import math
from typing import Any

import keras
from keras import ops

from keras_deit.arguments import (
    check_non_negative_int,
    check_not_zero,
    check_positive_int,
    check_positive_number,
    check_shape,
)
from keras_deit.layers.inputs import as_floats


@keras.saving.register_keras_serializable(package="keras_deit")
class RotaryPositionEmbedding(keras.layers.Layer):
    """Computes the rotation of queries and keys by the positions of their patches (2D RoPE).

    `MultiHeadSelfAttention` and `TransformerBlock` take the result as `rotation=`. One result
    serves all blocks. The layer has no weights and works for every image size.

    The centre of a patch has coordinates between -1 and 1 along each axis. A coordinate `c` gives
    `head_dim / 4` angles, `2 * pi * c / base ** (4 * i / head_dim)` for i = 0, 1, ... The angles of
    the vertical coordinate come first, then those of the horizontal one. Prefix tokens have the
    angle 0, which leaves them as they are.

    Args:
        head_dim: int, a multiple of 4. Size of a head, `hidden_dim / num_heads`.
        num_prefix_tokens: int, 0 or more. Number of tokens before the patches. Defaults to 1.
        base: float above 0. The larger, the slower the slowest angle changes. Defaults to 100.0, as
            in DINOv3.

    Input shape:
        (batch, rows, columns, channels): the feature map of the patches, as
        `PatchEmbedding(flatten=False)` returns it. Only its shape matters.

    Output shape:
        (2, num_prefix_tokens + rows * columns, head_dim / 2), without a batch axis: the cosines and
        the sines of the angles.

    Raises:
        ValueError: if an argument is out of range, or the input has another rank.

    Example:

    >>> patches = PatchEmbedding(hidden_dim=64, patch_size=16, flatten=False)
    >>> rotation = RotaryPositionEmbedding(head_dim=16, num_prefix_tokens=0)
    >>> feature_map = patches(keras.random.uniform((2, 32, 48, 3)))
    >>> tokens = keras.ops.reshape(feature_map, (2, 6, 64))
    >>> block = TransformerBlock(num_heads=4, intermediate_dim=256)
    >>> block(tokens, rotation=rotation(feature_map)).shape
    (2, 6, 64)

    References:
        [Su et al., 2021](https://arxiv.org/abs/2104.09864) (RoPE);
        [Siméoni et al., 2025](https://arxiv.org/abs/2508.10104) (DINOv3), whose coordinates and
        frequencies these are, without their random changes in training.
    """

    def __init__(
        self, head_dim: int, num_prefix_tokens: int = 1, base: float = 100.0, **kwargs: Any
    ) -> None:
        head_dim = check_positive_int("head_dim", head_dim)
        if head_dim % 4:
            raise ValueError(
                "`head_dim` must be a multiple of 4: each of the two coordinates rotates pairs of "
                f"values. Received: head_dim={head_dim}"
            )
        num_prefix_tokens = check_non_negative_int("num_prefix_tokens", num_prefix_tokens)
        base = check_positive_number("base", base)
        super().__init__(**kwargs)
        self.head_dim = head_dim
        self.num_prefix_tokens = num_prefix_tokens
        self.base = base

    def build(self, input_shape):
        self._check_shape(input_shape)
        self.input_spec = keras.InputSpec(ndim=4)
        self.built = True

    def _check_shape(self, input_shape):
        check_shape("RotaryPositionEmbedding", input_shape)
        if len(input_shape) != 4:
            raise ValueError(
                "`RotaryPositionEmbedding` takes a feature map of shape (batch, rows, columns, "
                "channels), such as the output of `PatchEmbedding(flatten=False)`. "
                f"Received: input shape {tuple(input_shape)}"
            )
        check_not_zero("RotaryPositionEmbedding", "patch", input_shape)

    def call(self, inputs):
        inputs = as_floats(self, inputs)
        self._check_shape(inputs.shape)
        _, rows, columns, _ = ops.shape(inputs)
        count = self.head_dim // 4
        frequencies = ops.power(self.base, -ops.arange(count, dtype="float32") / count)
        shape = (rows, columns, count)
        vertical = ops.broadcast_to(_centres(rows)[:, None, None] * frequencies, shape)
        horizontal = ops.broadcast_to(_centres(columns)[None, :, None] * frequencies, shape)
        angles = 2 * math.pi * ops.concatenate([vertical, horizontal], axis=-1)
        angles = ops.reshape(angles, (-1, 2 * count))  # (rows * columns, head_dim / 2)
        angles = ops.pad(angles, ((self.num_prefix_tokens, 0), (0, 0)))
        return ops.cast(ops.stack([ops.cos(angles), ops.sin(angles)]), self.compute_dtype)

    def compute_output_shape(self, input_shape):
        self._check_shape(input_shape)
        _, rows, columns, _ = input_shape
        tokens = None
        if rows is not None and columns is not None:
            tokens = self.num_prefix_tokens + rows * columns
        return (2, tokens, self.head_dim // 2)

    def get_config(self):
        return {
            **super().get_config(),
            "head_dim": self.head_dim,
            "num_prefix_tokens": self.num_prefix_tokens,
            "base": self.base,
        }


def _centres(count):
    """The centres of `count` intervals that divide [-1, 1]."""
    return (2.0 * ops.arange(count, dtype="float32") + 1.0) / ops.cast(count, "float32") - 1.0
