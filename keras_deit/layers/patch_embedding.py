"""How an image becomes a sequence of tokens."""

import keras
from keras import ops

from keras_deit.arguments import check_choice, check_pair, check_positive_int
from keras_deit.layers.composite import CompositeLayer
from keras_deit.layers.initialization import deit_initializer
from keras_deit.layers.kernels import embed_patches


@keras.saving.register_keras_serializable(package="keras_deit")
class PatchEmbedding(CompositeLayer):
    """Cuts images into patches that do not overlap and projects each to a token.

    `token[i] = patch[i] @ kernel + bias`, patches in row-major order. It equals a convolution whose
    stride is its kernel size; as one matrix product it is quantized and takes LoRA as any `Dense`
    does.

    Args:
        hidden_dim: int. Width D of a token.
        patch_size: int or (height, width), in pixels. Must divide the image.
        data_format: `"channels_last"` or `"channels_first"`. Defaults to
            `keras.config.image_data_format()`.

    Input shape:
        (batch, height, width, channels), or (batch, channels, height, width) with
        `"channels_first"`. Any number of channels.

    Output shape:
        (batch, height / patch height * width / patch width, hidden_dim).

    Raises:
        ValueError: an argument out of range, or an image that the patch size does not divide.

    Example:

    >>> images = keras.random.uniform((2, 32, 48, 3))
    >>> PatchEmbedding(hidden_dim=64, patch_size=16)(images).shape
    (2, 6, 64)

    Reference: [Dosovitskiy et al., 2021](https://arxiv.org/abs/2010.11929), section 3.1.
    """

    def __init__(self, hidden_dim, patch_size, data_format=None, **kwargs):
        hidden_dim = check_positive_int("hidden_dim", hidden_dim)
        patch_size = check_pair("patch_size", patch_size)
        data_format = data_format or keras.config.image_data_format()
        check_choice("data_format", data_format, ("channels_last", "channels_first"))
        super().__init__(**kwargs)
        self.hidden_dim = hidden_dim
        self.patch_size = patch_size
        self.data_format = data_format
        self.projection = keras.layers.Dense(
            hidden_dim, kernel_initializer=deit_initializer(), **self.sublayer("projection")
        )

    def build(self, input_shape):
        _, _, channels = self._image_shape(input_shape)
        patch_height, patch_width = self.patch_size
        if channels is None:
            raise ValueError(
                f"`PatchEmbedding` must know the number of channels when it is built. "
                f"Received: input shape {tuple(input_shape)}, data_format={self.data_format!r}"
            )
        self.projection.build((None, patch_height * patch_width * channels))
        self.built = True

    def call(self, inputs):
        self._image_shape(inputs.shape)
        if self.data_format == "channels_first":
            inputs = ops.transpose(inputs, (0, 2, 3, 1))
        return embed_patches(self.projection, inputs, self.patch_size)

    def compute_output_shape(self, input_shape):
        height, width, _ = self._image_shape(input_shape)
        known = height is not None and width is not None
        num_patches = (
            (height // self.patch_size[0]) * (width // self.patch_size[1]) if known else None
        )
        return (input_shape[0], num_patches, self.hidden_dim)

    def _image_shape(self, input_shape):
        """(height, width, channels) of images that the patch size divides."""
        if len(input_shape) != 4:
            raise ValueError(
                "`PatchEmbedding` takes a batch of images (rank 4); add a batch axis to a single "
                "one. "
                f"Received: input shape {tuple(input_shape)}"
            )
        if self.data_format == "channels_first":
            _, channels, height, width = input_shape
        else:
            _, height, width, channels = input_shape
        for side, size, patch in zip(("height", "width"), (height, width), self.patch_size):
            if size is not None and size % patch:
                smaller, larger = size // patch * patch, -(-size // patch) * patch
                advice = f"{smaller} or {larger}" if smaller else f"{larger}"
                raise ValueError(
                    f"`patch_size` must divide the image: {side} {size} is not a multiple of "
                    f"{patch}. "
                    f"Use {advice}, or resize first. "
                    f"Received: input shape {tuple(input_shape)}, "
                    f"data_format={self.data_format!r}, "
                    f"patch_size={self.patch_size}"
                )
        return height, width, channels

    def get_config(self):
        return {
            **super().get_config(),
            "hidden_dim": self.hidden_dim,
            "patch_size": self.patch_size,
            "data_format": self.data_format,
        }
