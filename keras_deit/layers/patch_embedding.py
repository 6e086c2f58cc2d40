"""Images to tokens."""

from typing import Any

import keras
from keras import ops

from keras_deit.arguments import (
    check_bool,
    check_not_zero,
    check_pair,
    check_positive_int,
    check_shape,
)
from keras_deit.data_formats import check_data_format, grid_size_of, split_image_shape
from keras_deit.layers.composite import CompositeLayer
from keras_deit.layers.initialization import deit_initializer
from keras_deit.layers.inputs import as_floats
from keras_deit.layers.kernels import embed_patches


@keras.saving.register_keras_serializable(package="keras_deit")
class PatchEmbedding(CompositeLayer):
    """Splits images into non-overlapping patches and projects each patch to a token.

    `token[i] = patch[i] @ kernel + bias`, with patches in row-major order. Equal to a convolution
    whose stride is its kernel size. The projection is a `Dense`, so it supports quantization and
    LoRA.

    Args:
        hidden_dim: int. Size D of a token.
        patch_size: int or (height, width), in pixels. Must divide the image's height and width,
            unless `pad_images=True`.
        data_format: `"channels_last"` or `"channels_first"`. Defaults to
            `keras.config.image_data_format()`.
        flatten: bool. Whether to return a sequence of tokens. `False` returns a feature map.
            Defaults to `True`.
        pad_images: bool. Whether to add zeros at the bottom and at the right of images that
            `patch_size` does not divide. Defaults to `False`, which refuses them.

    Input shape:
        (batch, height, width, channels), or (batch, channels, height, width) with
        `data_format="channels_first"`. Any number of channels. Height and width may be `None`.

    Output shape:
        (batch, rows * columns, hidden_dim), or (batch, rows, columns, hidden_dim) with
        `flatten=False`, in either data format. `rows = height / patch_height` and
        `columns = width / patch_width`, rounded up with `pad_images=True`.

    Raises:
        ValueError: if an argument is out of range, or `patch_size` does not divide the image.

    Example:

    >>> images = keras.random.uniform((2, 32, 48, 3))
    >>> PatchEmbedding(hidden_dim=64, patch_size=16)(images).shape
    (2, 6, 64)
    >>> PatchEmbedding(hidden_dim=64, patch_size=16, flatten=False)(images).shape
    (2, 2, 3, 64)

    Reference: [Dosovitskiy et al., 2021](https://arxiv.org/abs/2010.11929), section 3.1.
    """

    def __init__(
        self,
        hidden_dim: int,
        patch_size: int | tuple[int, int],
        data_format: str | None = None,
        flatten: bool = True,
        pad_images: bool = False,
        **kwargs: Any,
    ) -> None:
        hidden_dim = check_positive_int("hidden_dim", hidden_dim)
        patch_size = check_pair("patch_size", patch_size)
        data_format = check_data_format(data_format)
        flatten = check_bool("flatten", flatten)
        pad_images = check_bool("pad_images", pad_images)
        super().__init__(**kwargs)
        self.hidden_dim = hidden_dim
        self.patch_size = patch_size
        self.data_format = data_format
        self.flatten = flatten
        self.pad_images = pad_images
        self.projection = keras.layers.Dense(
            hidden_dim, kernel_initializer=deit_initializer(), **self.sublayer("projection")
        )

    def build(self, input_shape):
        _, channels = self._size_and_channels(input_shape)
        patch_height, patch_width = self.patch_size
        if channels is None:
            raise ValueError(
                "`PatchEmbedding` needs a known number of channels. "
                f"Received: input shape {tuple(input_shape)}, data_format={self.data_format!r}"
            )
        self.projection.build((None, patch_height * patch_width * channels))
        axis = 1 if self.data_format == "channels_first" else 3
        self.input_spec = keras.InputSpec(ndim=4, axes={axis: channels})
        self.built = True

    def call(self, inputs):
        inputs = as_floats(self, inputs)
        self._size_and_channels(inputs.shape)
        if self.data_format == "channels_first":
            inputs = ops.transpose(inputs, (0, 2, 3, 1))
        if self.pad_images:
            # Not `-size % patch`: ONNX's remainder of a negative number is another one.
            bottom, right = (
                (patch - size % patch) % patch
                for size, patch in zip(ops.shape(inputs)[1:3], self.patch_size)
            )
            inputs = ops.pad(inputs, ((0, 0), (0, bottom), (0, right), (0, 0)))
        return embed_patches(self.projection, inputs, self.patch_size, self.flatten)

    def compute_output_shape(self, input_shape):
        image_size, _ = self._size_and_channels(input_shape)
        rows, columns = grid_size_of(image_size, self.patch_size)
        if not self.flatten:
            return (input_shape[0], rows, columns, self.hidden_dim)
        num_patches = None if rows is None or columns is None else rows * columns
        return (input_shape[0], num_patches, self.hidden_dim)

    def _size_and_channels(self, input_shape):
        return check_images(
            "PatchEmbedding", input_shape, self.data_format, self.patch_size, self.pad_images
        )

    def get_config(self):
        return {
            **super().get_config(),
            "hidden_dim": self.hidden_dim,
            "patch_size": self.patch_size,
            "data_format": self.data_format,
            "flatten": self.flatten,
            "pad_images": self.pad_images,
        }


def check_images(layer, input_shape, data_format, patch_size, pads_images=None):
    """((height, width), channels) of images that patches divide, or that `layer` pads.

    `pads_images` is `None` for a layer that has no such argument.
    """
    check_shape(layer, input_shape)
    if len(input_shape) != 4:
        raise ValueError(
            f"`{layer}` takes a batch of images (rank 4). Add a batch axis to a single image. "
            f"Received: input shape {tuple(input_shape)}"
        )
    check_not_zero(layer, "patch", input_shape)
    image_size, channels = split_image_shape(input_shape, data_format)
    for side, size, patch in zip(("height", "width"), image_size, patch_size):
        if size is not None and size % patch and not pads_images:
            smaller, larger = size // patch * patch, -(-size // patch) * patch
            advice = f"{smaller} or {larger}" if smaller else f"{larger}"
            others = (
                "or resize first"
                if pads_images is None
                else ("resize first, or use `pad_images=True`")
            )
            raise ValueError(
                f"`patch_size` must divide the image: {side} {size} is not a multiple of "
                f"{patch}. Use {advice}, {others}. Received: input shape {tuple(input_shape)}, "
                f"data_format={data_format!r}, patch_size={patch_size}"
            )
    return image_size, channels
