"""Images to tokens in several steps."""

from typing import Any

import keras
from keras import ops

from keras_deit.arguments import check_choice, check_positive_int
from keras_deit.data_formats import check_data_format
from keras_deit.layers.composite import CompositeLayer
from keras_deit.layers.initialization import deit_initializer
from keras_deit.layers.inputs import as_floats
from keras_deit.layers.kernels import embed_patches, gelu
from keras_deit.layers.patch_embedding import check_images

PATCH_SIZES = (8, 16, 32)


@keras.saving.register_keras_serializable(package="keras_deit")
class HMLPStem(CompositeLayer):
    """Makes a token of each patch with a hierarchical MLP, in place of `PatchEmbedding`.

    The first step projects 4 x 4 pixels to `hidden_dim / 4` values. Each further step projects 2 x
    2 results of the last one, until a result covers the patch: `x = norm(projection(x))`, with a
    GELU between steps and `hidden_dim` values after the last one. `norm` is a BatchNormalization.

    Like `PatchEmbedding`, and unlike a convolutional stem, it never mixes patches: masked image
    modelling can drop patches before or after it. The projections are `Dense` layers, so they
    support quantization and LoRA.

    Args:
        hidden_dim: int, a multiple of 4. Size D of a token.
        patch_size: 8, 16 or 32, in pixels: 2, 3 or 4 steps. Must divide the image's height and
            width. Defaults to 16, as in the paper.
        data_format: `"channels_last"` or `"channels_first"`. Defaults to
            `keras.config.image_data_format()`.

    Call arguments:
        inputs: images.
        training: bool. Whether to normalize with the statistics of the batch, and to update the
            moving averages that are used otherwise.

    Input shape:
        (batch, height, width, channels), or (batch, channels, height, width) with
        `data_format="channels_first"`. Any number of channels. Height and width may be `None`.

    Output shape:
        (batch, rows * columns, hidden_dim), with `rows = height / patch_size` and
        `columns = width / patch_size`.

    Raises:
        ValueError: if an argument is out of range, or `patch_size` does not divide the image.

    Example:

    >>> images = keras.random.uniform((2, 32, 48, 3))
    >>> HMLPStem(hidden_dim=64)(images).shape
    (2, 6, 64)

    Reference: [Touvron et al., 2022](https://arxiv.org/abs/2203.09795), section 5; `hMLP_stem` in
    `models_v2.py` of facebookresearch/deit at 7e160fe. Its biases are missing here, because
    BatchNormalization cancels them.
    """

    def __init__(
        self,
        hidden_dim: int,
        patch_size: int = 16,
        data_format: str | None = None,
        **kwargs: Any,
    ) -> None:
        hidden_dim = check_positive_int("hidden_dim", hidden_dim)
        if hidden_dim % 4:
            raise ValueError(
                "`hidden_dim` must be a multiple of 4: all steps but the last have a quarter of "
                f"it. Received: hidden_dim={hidden_dim}"
            )
        patch_size = int(check_choice("patch_size", patch_size, PATCH_SIZES))
        data_format = check_data_format(data_format)
        super().__init__(**kwargs)
        self.hidden_dim = hidden_dim
        self.patch_size = patch_size
        self.data_format = data_format
        for step in range(PATCH_SIZES.index(patch_size) + 2):
            is_last = 4 * 2**step == patch_size
            projection = keras.layers.Dense(
                hidden_dim if is_last else hidden_dim // 4,
                use_bias=False,
                kernel_initializer=deit_initializer(),
                **self.sublayer(f"projection_{step}"),
            )
            # Momentum and epsilon are PyTorch's.
            norm = keras.layers.BatchNormalization(
                momentum=0.9, epsilon=1e-5, **self.sublayer(f"norm_{step}")
            )
            setattr(self, projection.name, projection)
            setattr(self, norm.name, norm)

    def build(self, input_shape):
        _, channels = self._size_and_channels(input_shape)
        if channels is None:
            raise ValueError(
                "`HMLPStem` needs a known number of channels. "
                f"Received: input shape {tuple(input_shape)}, data_format={self.data_format!r}"
            )
        size = channels
        for side, projection, norm in self._steps():
            projection.build((None, side * side * size))
            size = projection.units
            norm.build((None, None, None, size))
        axis = 1 if self.data_format == "channels_first" else 3
        self.input_spec = keras.InputSpec(ndim=4, axes={axis: channels})
        self.built = True

    def call(self, inputs, training=None):
        x = as_floats(self, inputs)
        self._size_and_channels(x.shape)
        if self.data_format == "channels_first":
            x = ops.transpose(x, (0, 2, 3, 1))
        for side, projection, norm in self._steps():
            x = x if projection is self.projection_0 else gelu(x)
            x = norm(embed_patches(projection, x, (side, side), flatten=False), training=training)
        batch, rows, columns, dim = ops.shape(x)
        return ops.reshape(x, (batch, rows * columns, dim))

    def _steps(self):
        """(side of what a step projects, its projection, its norm)"""
        return zip((4, 2, 2, 2), self.sublayers[::2], self.sublayers[1::2])

    def compute_output_shape(self, input_shape):
        size, _ = self._size_and_channels(input_shape)
        known = None not in size
        num_patches = size[0] * size[1] // self.patch_size**2 if known else None
        return (input_shape[0], num_patches, self.hidden_dim)

    def _size_and_channels(self, input_shape):
        return check_images("HMLPStem", input_shape, self.data_format, (self.patch_size,) * 2)

    def get_config(self):
        return {
            **super().get_config(),
            "hidden_dim": self.hidden_dim,
            "patch_size": self.patch_size,
            "data_format": self.data_format,
        }
