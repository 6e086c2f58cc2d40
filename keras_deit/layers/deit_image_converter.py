"""Raw images to the input of the model."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_deit.arguments import (
    check_bool,
    check_choice,
    check_numbers,
    check_pair,
    check_positive_number,
    check_shape,
)
from keras_deit.data_formats import check_data_format, join_image_shape, split_image_shape
from keras_deit.layers.inputs import check_real
from keras_deit.layers.naming import unique_name

_LARGEST_PRODUCT = 16384  # pixels: 8192 x 16384 is half a GiB, while the matrix is made


@keras.saving.register_keras_serializable(package="keras_deit")
class DeiTImageConverter(keras.layers.Rescaling):
    """Resizes, center-crops and normalises raw images, as DeiT's official evaluation does.

    The image is resized to cover `image_size / crop_ratio` with its aspect ratio kept (for a square
    size, its shorter side gets that length). Then `image_size` is cropped from the center, and
    `outputs = (pixels / 255 - mean) / std`.

    The resize matches Pillow's on 8-bit images: antialiased, first along the width and then along
    the height, with pixel values rounded to integers after each. Inside `tf.data` it runs on
    TensorFlow with any backend. Inside grain it returns the backend's tensors on the CPU, as Keras'
    own preprocessing layers do.

    Args:
        image_size: int or (height, width) of the output, in pixels.
        crop_ratio: float in (0, 1]. Ratio of `image_size` to the size that the resized image must
            cover; 1.0 crops only what the aspect ratio requires. DeiT's evaluation uses 0.875,
            DeiT III's 1.0. Defaults to 0.875.
        interpolation: `"bicubic"`, `"bilinear"` or `"nearest"`. Defaults to `"bicubic"`.
        mean: float, or one float for each channel, for pixel values scaled to [0, 1]. Defaults to
            ImageNet's.
        std: float above 0, or one float for each channel, for pixel values scaled to [0, 1].
            Defaults to ImageNet's.
        data_format: `"channels_last"` or `"channels_first"`. Defaults to
            `keras.config.image_data_format()`.
        crop_to_aspect_ratio: bool, as in `keras.layers.Resizing`. `False` resizes to exactly
            `image_size / crop_ratio` and distorts images of another aspect ratio, as some of
            transformers' processors do. Defaults to `True`.
        **kwargs: arguments of `keras.layers.Layer`. `dtype` is the dtype of the output and defaults
            to `"float32"`, whatever the global policy.

    Input shape:
        (height, width, channels) or (batch, height, width, channels), uint8 or float pixel values
        from 0 to 255, of any size. With `data_format="channels_first"`, channels come before
        height.

    Output shape:
        Same as the input, with `image_size` for height and width.

    Raises:
        ValueError: if an argument is out of range, or the channels of the images do not match
            `mean` and `std`.

    Example:

    >>> photo = np.zeros((427, 640, 3), "uint8")
    >>> DeiTImageConverter(image_size=224)(photo).shape
    (224, 224, 3)

    Reference: `datasets.py` of facebookresearch/deit at 7e160fe, `build_transform`.
    """

    def __init__(
        self,
        image_size: int | tuple[int, int],
        crop_ratio: float = 0.875,
        interpolation: str = "bicubic",
        mean: float | Sequence[float] = (0.485, 0.456, 0.406),
        std: float | Sequence[float] = (0.229, 0.224, 0.225),
        data_format: str | None = None,
        crop_to_aspect_ratio: bool = True,
        **kwargs: Any,
    ) -> None:
        image_size = check_pair("image_size", image_size)
        crop_ratio = check_positive_number("crop_ratio", crop_ratio)
        if crop_ratio > 1:
            raise ValueError(
                "`crop_ratio` must be in (0, 1]: the crop cannot be larger than the resized image. "
                f"Received: crop_ratio={crop_ratio!r}"
            )
        check_choice("interpolation", interpolation, ("bicubic", "bilinear", "nearest"))
        crop_to_aspect_ratio = check_bool("crop_to_aspect_ratio", crop_to_aspect_ratio)
        data_format = check_data_format(data_format)
        mean, std = check_numbers("mean", mean), check_numbers("std", std)
        if len(mean) != len(std) and 1 not in (len(mean), len(std)):
            raise ValueError(
                "`mean` and `std` must each be one number, or one for each channel. Received: "
                f"mean={mean!r}, std={std!r}"
            )
        for value in std:
            check_positive_number("std", value)
        if not np.isfinite(mean).all():
            raise ValueError(f"`mean` must be finite. Received: mean={mean!r}")
        # The global policy does not apply: half precision would round resized pixel values.
        kwargs.setdefault("dtype", "float32")
        super().__init__(
            scale=1.0,
            **{**kwargs, "name": kwargs.get("name") or unique_name("deit_image_converter")},
        )
        self.image_size = image_size
        self.crop_ratio = crop_ratio
        self.interpolation = interpolation
        self.mean = mean
        self.std = std
        self.data_format = data_format
        self.crop_to_aspect_ratio = crop_to_aspect_ratio
        num_channels = max(len(mean), len(std))
        mean, std = mean * (num_channels // len(mean)), std * (num_channels // len(std))
        self.scale = [1 / (255 * s) for s in std]
        self.offset = [-m / s for m, s in zip(mean, std)]
        self.built = True  # no weights, but `quantize` refuses a model with unbuilt layers

    def __call__(self, inputs, **kwargs):
        check_real(self, inputs)  # Keras looks for the first tensor, and may find none
        return super().__call__(inputs, **kwargs)

    def call(self, inputs):
        self._check_images(inputs.shape)
        images = self.backend.cast(inputs, "float32")
        channels_first = self.data_format == "channels_first"
        if channels_first:
            images = self._permute(images, (1, 2, 0))
        images = self._crop(self._resize(images))
        images = images * self.backend.cast(self.scale, "float32") + self.backend.cast(
            self.offset, "float32"
        )
        if channels_first:
            images = self._permute(images, (2, 0, 1))
        return self.backend.cast(images, self.compute_dtype)

    def crop_box(self, height: int, width: int) -> tuple[float, float, float, float]:
        """Returns the region of a raw image that the output shows.

        Args:
            height, width: int. Size of the raw image.

        Returns:
            `(top, left, height, width)`, floats, in pixels of the raw image.
        """
        resized = self._resized_size(height, width)
        scales = [side / new for side, new in zip((height, width), resized)]
        top, left = (
            _half_to_even(new - side) * scale
            for new, side, scale in zip(resized, self.image_size, scales)
        )
        return (top, left, *(side * scale for side, scale in zip(self.image_size, scales)))

    def for_size(self, height: int, width: int) -> "DeiTImageConverter":
        """Returns a converter for images of one size, which resizes by matrix products.

        Use it in models that you export, because not every runtime has an antialiased resize. The
        returned converter cannot be saved.

        Args:
            height, width: int. Size of the raw images.

        Raises:
            ValueError: if a side of the resized image would exceed 16384 pixels, because the image
                is very long and thin.
        """
        return _OneSizeConverter(self, height, width)

    def _resized_size(self, height, width):
        """The size before the crop: `image_size / crop_ratio`, or the smallest that covers it."""
        # The small number makes ratios such as 16 / 93 give 93, not 92.
        new_height, new_width = (int(side / self.crop_ratio + 1e-6) for side in self.image_size)
        if not self.crop_to_aspect_ratio:
            return new_height, new_width
        # Inside tf.data, unknown sizes are tensors.
        larger = (
            max
            if isinstance(height, int) and isinstance(width, int)
            else self.backend.numpy.maximum
        )
        return larger(new_height, height * new_width // width), larger(
            new_width, width * new_height // height
        )

    def _resize(self, images):
        """(..., H, W, C) to (..., h, w, C)."""
        height, width = self.backend.shape(images)[-3:-1]
        new_height, new_width = self._resized_size(height, width)
        for size in ((height, new_width), (new_height, new_width)):
            images = self._levels(self._interpolate(images, size))
        return images

    def _interpolate(self, images, size):
        return self.backend.image.resize(
            images,
            size,
            interpolation=self.interpolation,
            antialias=True,
            data_format="channels_last",
        )

    def _levels(self, images):
        """Rounds to integers, half up as Pillow does.

        Values slightly below a half also round up, so that the order of float32 sums, which differs
        between backends, does not decide.
        """
        return self.backend.numpy.floor(self.backend.numpy.clip(images, 0.0, 255.0) + (0.5 + 1e-4))

    def _crop(self, images):
        sizes = self.backend.shape(images)[-3:-1]
        top, left = (_half_to_even(size - side) for size, side in zip(sizes, self.image_size))
        height, width = self.image_size
        images = images[..., top : top + height, left : left + width, :]
        # Inside tf.data, slicing loses the static size, which `fit` needs.
        batch = (-1,) if len(images.shape) == 4 else ()
        return self.backend.numpy.reshape(
            images, (*batch, height, width, self.backend.shape(images)[-1])
        )

    def _permute(self, images, axes):
        if len(images.shape) == 4:
            axes = (0, *(axis + 1 for axis in axes))
        return self.backend.numpy.transpose(images, axes)

    def _check_images(self, shape):
        check_shape("DeiTImageConverter", shape)
        if len(shape) not in (3, 4):
            raise ValueError(
                "`DeiTImageConverter` takes one image (rank 3) or a batch of images of one size "
                f"(rank 4). Received: images of shape {tuple(shape)}"
            )
        if any(isinstance(size, int) and size == 0 for size in shape[-3:]):
            raise ValueError(
                "`DeiTImageConverter` needs images of at least one pixel and one channel. "
                f"Received: images of shape {tuple(shape)}"
            )
        _, channels = split_image_shape(shape, self.data_format)
        if channels is not None and len(self.scale) not in (1, channels):
            raise ValueError(
                f"`mean` and `std` are for {len(self.scale)} channels, but the images have "
                f"{channels}. Convert the images, or use one number for each of their channels. "
                f"Received: images of shape {tuple(shape)}, data_format={self.data_format!r}, "
                f"mean={self.mean}, std={self.std}"
            )

    def compute_output_shape(self, input_shape):
        self._check_images(input_shape)
        *batch, _, _, _ = input_shape
        _, channels = split_image_shape(input_shape, self.data_format)
        return (*batch, *join_image_shape(self.image_size, channels, self.data_format))

    def get_config(self):
        config = super().get_config()
        # Both follow from `mean` and `std`.
        del config["scale"], config["offset"]
        return {
            **config,
            "image_size": self.image_size,
            "crop_ratio": self.crop_ratio,
            "interpolation": self.interpolation,
            "mean": self.mean,
            "std": self.std,
            "data_format": self.data_format,
            "crop_to_aspect_ratio": self.crop_to_aspect_ratio,
        }

    @classmethod
    def from_config(cls, config):
        return cls(**config)


class _OneSizeConverter(DeiTImageConverter):
    def __init__(self, converter, height, width):
        super().__init__(**converter.get_config())
        resized = self._resized_size(height, width)
        if max(resized) > _LARGEST_PRODUCT:
            raise ValueError(
                f"Images of {height} x {width} pixels would be resized to {resized[0]} x "
                f"{resized[1]} before the crop, and the limit is {_LARGEST_PRODUCT}. Crop them "
                f"closer to the aspect ratio {self.image_size[0]} x {self.image_size[1]} first."
            )
        self._raw_size = (height, width)
        # The resize is linear along each axis, so resizing the unit vectors gives its matrix.
        self._rows, self._columns = map(self._matrix, self._raw_size, resized, self.image_size)

    def _matrix(self, side, new_side, kept):
        """Resize and crop along an axis: (kept, side)."""
        unit_vectors = np.eye(side, dtype="float32")[..., None]
        matrix = keras.ops.convert_to_numpy(self._interpolate(unit_vectors, (side, new_side)))[
            ..., 0
        ].T
        start = _half_to_even(new_side - kept)
        return matrix[start : start + kept]

    def _resize(self, images):
        """(B, H, W, C) to (B, h, w, C), cropped."""
        (height, width), (new_height, new_width), channels = (
            self._raw_size,
            self.image_size,
            images.shape[-1],
        )
        ops = self.backend.numpy
        x = ops.reshape(ops.transpose(images, (0, 2, 1, 3)), (-1, width, height * channels))
        x = self._levels(ops.matmul(self._columns, x))  # (B, w, H * C)
        x = ops.transpose(ops.reshape(x, (-1, new_width, height, channels)), (0, 2, 1, 3))
        # (B, h, w * C)
        x = self._levels(ops.matmul(self._rows, ops.reshape(x, (-1, height, new_width * channels))))
        return ops.reshape(x, (-1, new_height, new_width, channels))

    def _crop(self, images):
        return images


def _half_to_even(difference):
    """`round(difference / 2)`, half to even, for ints and tensors, as torchvision's center crop."""
    half = difference // 2
    return half + (difference % 2) * (half % 2)
