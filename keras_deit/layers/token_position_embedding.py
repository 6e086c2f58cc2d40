"""Prefix tokens and position embeddings."""

import numbers
from typing import Any

import keras
from keras import ops

from keras_deit.arguments import check_choice, check_pair, check_rate, check_token_sequence
from keras_deit.layers.composite import CompositeLayer
from keras_deit.layers.initialization import deit_initializer
from keras_deit.layers.inputs import as_floats

POSITION_SCOPES = ("all", "patches")


@keras.saving.register_keras_serializable(package="keras_deit")
class TokenPositionEmbedding(CompositeLayer):
    """Prepends learned prefix tokens to the patch tokens and adds position embeddings.

    With `position_scope="all"` (DeiT), every token has a position embedding:
    `outputs = concat(prefix, patches) + positions`. With `"patches"` (DeiT III), only patches do:
    `outputs = concat(prefix, patches + positions)`.

    Args:
        num_prefix_tokens: int, 0 or more. 1 for the class token, 2 for the class and the
            distillation token.
        grid_size: int or (rows, columns). Number of patches along the image's height and width.
        position_scope: `"all"` or `"patches"`. Defaults to `"all"`.
        dropout_rate: float in [0, 1). Dropout on the outputs. Defaults to 0.0.

    Input shape:
        (batch, rows * columns, hidden_dim), patches in row-major order.

    Output shape:
        (batch, num_prefix_tokens + rows * columns, hidden_dim).

    Raises:
        ValueError: if an argument is out of range, or the number of patches is not
            `rows * columns`.

    Example:

    >>> patches = keras.random.uniform((2, 6, 64))
    >>> TokenPositionEmbedding(num_prefix_tokens=2, grid_size=(2, 3))(patches).shape
    (2, 8, 64)

    References:
        [Touvron et al., 2021](https://arxiv.org/abs/2012.12877), section 4 (distillation token);
        [Touvron et al., 2022](https://arxiv.org/abs/2204.07118) (DeiT III), `models_v2.py` of
        facebookresearch/deit at 7e160fe.
    """

    def __init__(
        self,
        num_prefix_tokens: int,
        grid_size: int | tuple[int, int],
        position_scope: str = "all",
        dropout_rate: float = 0.0,
        **kwargs: Any,
    ) -> None:
        if (
            isinstance(num_prefix_tokens, bool)
            or not isinstance(num_prefix_tokens, numbers.Integral)
            or not 0 <= num_prefix_tokens < 2**63
        ):
            raise ValueError(
                "`num_prefix_tokens` must be a non-negative integer: 1 for the class token, 2 "
                f"with the distillation token. Received: num_prefix_tokens={num_prefix_tokens!r}"
            )
        grid_size = check_pair("grid_size", grid_size)
        check_choice("position_scope", position_scope, POSITION_SCOPES)
        dropout_rate = check_rate("dropout_rate", dropout_rate)
        super().__init__(**kwargs)
        self.num_prefix_tokens = int(num_prefix_tokens)
        self.grid_size = grid_size
        self.position_scope = position_scope
        self.dropout_rate = dropout_rate
        self.dropout = keras.layers.Dropout(dropout_rate, **self.sublayer("dropout"))

    def build(self, input_shape):
        check_token_sequence("TokenPositionEmbedding", input_shape)
        _, tokens, hidden_dim = input_shape
        num_patches = self.grid_size[0] * self.grid_size[1]
        if tokens is not None and tokens != num_patches:
            raise ValueError(
                f"`grid_size` must match the number of patches: {self.grid_size[0]} x "
                f"{self.grid_size[1]} = {num_patches}, but the input has {tokens}. Use "
                "(image height / patch height, image width / patch width). "
                f"Received: input shape {tuple(input_shape)}, grid_size={self.grid_size}"
            )
        num_positions = num_patches + (
            self.num_prefix_tokens if self.position_scope == "all" else 0
        )
        self.prefix_tokens = None
        if self.num_prefix_tokens:
            self.prefix_tokens = self.add_weight(
                shape=(self.num_prefix_tokens, hidden_dim),
                initializer=deit_initializer(),
                name="prefix_tokens",
            )
        self.positions = self.add_weight(
            shape=(num_positions, hidden_dim), initializer=deit_initializer(), name="positions"
        )
        self.dropout.build(self.compute_output_shape(input_shape))
        # Without this, a single patch would broadcast to all positions.
        self.input_spec = keras.InputSpec(ndim=3, axes={1: num_patches, -1: hidden_dim})
        self.built = True

    def call(self, inputs, training=None):
        x = as_floats(self, inputs)
        check_token_sequence("TokenPositionEmbedding", x.shape)
        if self.position_scope == "patches":
            x = x + self.positions
        if self.num_prefix_tokens:
            shape = (ops.shape(x)[0], self.num_prefix_tokens, x.shape[-1])
            x = ops.concatenate([ops.broadcast_to(self.prefix_tokens, shape), x], axis=1)
        if self.position_scope == "all":
            x = x + self.positions
        return self.dropout(x, training=training)

    def compute_mask(self, inputs, previous_mask=None):
        if previous_mask is None or not self.num_prefix_tokens:
            return previous_mask
        mask = ops.cast(previous_mask, "bool")
        prefix = ops.repeat(ops.ones_like(mask[:, :1]), self.num_prefix_tokens, axis=1)
        return ops.concatenate([prefix, mask], axis=1)  # prefix tokens are no padding

    def compute_output_shape(self, input_shape):
        check_token_sequence("TokenPositionEmbedding", input_shape)
        batch, _, hidden_dim = input_shape
        return (batch, self.num_prefix_tokens + self.grid_size[0] * self.grid_size[1], hidden_dim)

    def get_config(self):
        return {
            **super().get_config(),
            "num_prefix_tokens": self.num_prefix_tokens,
            "grid_size": self.grid_size,
            "position_scope": self.position_scope,
            "dropout_rate": self.dropout_rate,
        }
