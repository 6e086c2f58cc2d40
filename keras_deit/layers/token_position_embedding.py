"""Prefix tokens and position embeddings."""

import numbers
from typing import Any

import keras
from keras import ops

from keras_deit.arguments import check_choice, check_pair, check_rate, check_tokens_or_map
from keras_deit.layers.composite import CompositeLayer
from keras_deit.layers.initialization import deit_initializer
from keras_deit.layers.inputs import as_floats
from keras_deit.resampling import resample

POSITION_SCOPES = ("all", "patches", "none")


@keras.saving.register_keras_serializable(package="keras_deit")
class TokenPositionEmbedding(CompositeLayer):
    """Prepends learned prefix tokens to the patch tokens and adds position embeddings.

    With `position_scope="all"` (DeiT), every token has a position embedding:
    `outputs = concat(prefix, patches) + positions`. With `"patches"` (DeiT III), only patches do:
    `outputs = concat(prefix, patches + positions)`. With `"none"`,
    `outputs = concat(prefix, patches)`.

    A feature map may have any number of rows and columns: the positions of patches are resampled to
    them, as `from_preset` does for another image size. The weights do not change.

    Args:
        num_prefix_tokens: int, 0 or more. 1 for the class token, 2 for the class and the
            distillation token.
        grid_size: int or (rows, columns). Number of patches along the image's height and width;
            for a feature map, the grid of the learned positions.
        position_scope: `"all"`, `"patches"`, or `"none"` for blocks that have positions of their
            own (`RotaryPositionEmbedding`). Defaults to `"all"`.
        dropout_rate: float in [0, 1). Dropout on the outputs. Defaults to 0.0.

    Input shape:
        (batch, rows * columns, hidden_dim), patches in row-major order; or a feature map
        (batch, rows, columns, hidden_dim), where rows and columns may be `None`.

    Output shape:
        (batch, num_prefix_tokens + rows * columns, hidden_dim).

    Raises:
        ValueError: if an argument is out of range, or the number of patches is not
            `rows * columns` of `grid_size`.

    Example:

    >>> patches = keras.random.uniform((2, 6, 64))
    >>> TokenPositionEmbedding(num_prefix_tokens=2, grid_size=(2, 3))(patches).shape
    (2, 8, 64)
    >>> feature_map = keras.random.uniform((2, 4, 5, 64))
    >>> TokenPositionEmbedding(num_prefix_tokens=2, grid_size=(2, 3))(feature_map).shape
    (2, 22, 64)

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
        check_tokens_or_map("TokenPositionEmbedding", input_shape)
        is_map, hidden_dim = len(input_shape) == 4, input_shape[-1]
        num_patches = self.grid_size[0] * self.grid_size[1]
        if not is_map and input_shape[1] not in (None, num_patches):
            raise ValueError(
                f"`grid_size` must match the number of patches: {self.grid_size[0]} x "
                f"{self.grid_size[1]} = {num_patches}, but the input has {input_shape[1]}. Use "
                "(image height / patch height, image width / patch width). "
                f"Received: input shape {tuple(input_shape)}, grid_size={self.grid_size}"
            )
        self.prefix_tokens = None
        if self.num_prefix_tokens:
            self.prefix_tokens = self.add_weight(
                shape=(self.num_prefix_tokens, hidden_dim),
                initializer=deit_initializer(),
                name="prefix_tokens",
            )
        self.positions = None
        if self.position_scope != "none":
            self.positions = self.add_weight(
                shape=(self._num_prefix_positions + num_patches, hidden_dim),
                initializer=deit_initializer(),
                autocast=False,  # resampled before they are rounded to half precision
                name="positions",
            )
        self.dropout.build(self.compute_output_shape(input_shape))
        # Without this, a single patch would broadcast to all positions.
        axes = {-1: hidden_dim} if is_map else {1: num_patches, -1: hidden_dim}
        self.input_spec = keras.InputSpec(ndim=len(input_shape), axes=axes)
        self.built = True

    @property
    def _num_prefix_positions(self):
        return self.num_prefix_tokens if self.position_scope == "all" else 0

    def call(self, inputs, training=None):
        x = as_floats(self, inputs)
        check_tokens_or_map("TokenPositionEmbedding", x.shape)
        positions = self.positions
        if len(x.shape) == 4:
            if positions is not None and not self._is_own_grid(x.shape[1:3]):
                positions = self._resampled(ops.shape(x)[1:3])
            x = ops.reshape(x, (ops.shape(x)[0], -1, x.shape[-1]))
        if self.position_scope == "patches":
            x = x + ops.cast(positions, self.compute_dtype)
        if self.num_prefix_tokens:
            shape = (ops.shape(x)[0], self.num_prefix_tokens, x.shape[-1])
            x = ops.concatenate([ops.broadcast_to(self.prefix_tokens, shape), x], axis=1)
        if self.position_scope == "all":
            x = x + ops.cast(positions, self.compute_dtype)
        return self.dropout(x, training=training)

    def _is_own_grid(self, grid_size):
        # PyTorch's exporter has sizes that are expressions: comparing one would fix its value.
        known = all(isinstance(size, int) for size in grid_size)
        return known and tuple(grid_size) == self.grid_size

    def _resampled(self, grid_size):
        """The positions for (rows, columns) of a feature map, in float32."""
        positions, prefix = ops.cast(self.positions, "float32"), self._num_prefix_positions
        patches = resample(positions[prefix:], self.grid_size, grid_size)
        return ops.concatenate([positions[:prefix], patches]) if prefix else patches

    def compute_mask(self, inputs, previous_mask=None):
        if previous_mask is not None and len(inputs.shape) == 4:
            raise ValueError(
                "`TokenPositionEmbedding` takes a mask with tokens (batch, tokens, hidden_dim), "
                f"not with a feature map. Received: input shape {tuple(inputs.shape)}"
            )
        if previous_mask is None or not self.num_prefix_tokens:
            return previous_mask
        mask = ops.cast(previous_mask, "bool")
        prefix = ops.repeat(ops.ones_like(mask[:, :1]), self.num_prefix_tokens, axis=1)
        return ops.concatenate([prefix, mask], axis=1)  # prefix tokens are no padding

    def compute_output_shape(self, input_shape):
        check_tokens_or_map("TokenPositionEmbedding", input_shape)
        rows, columns = input_shape[1:3] if len(input_shape) == 4 else self.grid_size
        num_tokens = None
        if rows is not None and columns is not None:
            num_tokens = self.num_prefix_tokens + rows * columns
        return (input_shape[0], num_tokens, input_shape[-1])

    def get_config(self):
        return {
            **super().get_config(),
            "num_prefix_tokens": self.num_prefix_tokens,
            "grid_size": self.grid_size,
            "position_scope": self.position_scope,
            "dropout_rate": self.dropout_rate,
        }
