"""How a raw image becomes what the model was trained on."""

import keras
import numpy as np

from keras_deit.arguments import check_bool, check_choice, check_pair, check_positive_number
from keras_deit.layers.naming import unique_name

_LARGEST_PRODUCT = 16384  # pixels: 8192 x 16384 is half a GiB, while the matrix is made


@keras.saving.register_keras_serializable(package="keras_deit")
class DeiTImageConverter(keras.layers.Rescaling):
    """Resizes, crops the centre and normalises raw images, as the official evaluation does with
    Pillow.

    The image is resized, aspect ratio kept, until it just covers `image_size / crop_ratio` (for a
    square size: until its shorter side is that long), `image_size` is cut from the centre, and
    `outputs = (levels / 255 - mean) / std`.

    The resize is antialiased and runs along the width and then the height, on whole levels from 0
    to 255 after each, as Pillow's does on 8-bit images. Inside `tf.data` it runs on TensorFlow
    whatever the backend is; inside grain it returns the backend's tensors, on the CPU, as Keras'
    own layers do.

    Args:
        image_size: int or (height, width) of the result, in pixels.
        crop_ratio: float in (0, 1]. Share of the resized image that the crop keeps, along each
            side. The official evaluation has 0.875 for DeiT and 1.0 for DeiT III. Defaults to
            0.875.
        interpolation: `"bicubic"`, `"bilinear"` or `"nearest"`. Defaults to `"bicubic"`.
        mean: float, or one for each channel, of the channel as a fraction of 255. Defaults to
            ImageNet's.
        std: float above 0, or one for each channel, as a fraction of 255. Defaults to ImageNet's.
        data_format: `"channels_last"` or `"channels_first"`. Defaults to
            `keras.config.image_data_format()`.
        crop_to_aspect_ratio: bool, as of `keras.layers.Resizing`. `False` resizes to exactly
            `image_size / crop_ratio`, which squeezes what has another shape; some of transformers'
            processors do. Defaults to `True`.
        **kwargs: as of any layer; `dtype`, that of the result, defaults to `"float32"` whatever the
            global policy.

    Input shape:
        (height, width, channels), or a batch (batch, height, width, channels), of any size, uint8
        or float, from 0 to 255. With `"channels_first"` the channels stand before the height.

    Output shape:
        As the input, with `image_size` in place of height and width.

    Raises:
        ValueError: an argument out of range, or images whose channels do not match `mean` and
            `std`.

    Example:

    >>> photo = np.zeros((427, 640, 3), "uint8")
    >>> DeiTImageConverter(image_size=224)(photo).shape
    (224, 224, 3)

    Reference: `datasets.py` of facebookresearch/deit at 7e160fe, `build_transform`.
    """

    def __init__(
        self,
        image_size,
        crop_ratio=0.875,
        interpolation="bicubic",
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        data_format=None,
        crop_to_aspect_ratio=True,
        **kwargs,
    ):
        image_size = check_pair("image_size", image_size)
        crop_ratio = check_positive_number("crop_ratio", crop_ratio)
        if crop_ratio > 1:
            raise ValueError(
                "`crop_ratio` must be in (0, 1]: the crop cannot be larger than the image. Use 1.0 "
                "to keep all of it. "
                f"Received: crop_ratio={crop_ratio!r}"
            )
        check_choice("interpolation", interpolation, ("bicubic", "bilinear", "nearest"))
        crop_to_aspect_ratio = check_bool("crop_to_aspect_ratio", crop_to_aspect_ratio)
        data_format = data_format or keras.config.image_data_format()
        check_choice("data_format", data_format, ("channels_last", "channels_first"))
        mean, std = _per_channel(mean), _per_channel(std)
        if not mean or not std or (len(mean) != len(std) and 1 not in (len(mean), len(std))):
            raise ValueError(
                "`mean` and `std` must have one number, or one for each channel. Received: "
                f"mean={mean!r}, std={std!r}"
            )
        for value in std:
            check_positive_number("std", value)
        if not np.isfinite(mean).all():
            raise ValueError(f"`mean` must be finite. Received: mean={mean!r}")
        # In half precision a resized photograph would lose its lowest bits, so the global policy
        # does not apply here.
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
        self.built = True  # no weights: `quantize` on a model refuses layers that are not

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

    def crop_box(self, height, width):
        """The part of an image that the model sees, in pixels of the image:
        `(top, left, height, width)`, floats.

        Args:
            height, width: int. Size of the raw image.
        """
        resized = self._resized_size(height, width)
        scales = [side / new for side, new in zip((height, width), resized)]
        top, left = (
            _half_to_even(new - side) * scale
            for new, side, scale in zip(resized, self.image_size, scales)
        )
        return (top, left, *(side * scale for side, scale in zip(self.image_size, scales)))

    def for_size(self, height, width):
        """The same conversion for batches of images of one size alone, without a resize: products
        with constants.

        For graphs that are exported: ONNX and LiteRT have no antialiased resize. The layer is not
        for saving.

        Args:
            height, width: int. Size of the raw images.

        Raises:
            ValueError: so long and thin that the image would be resized to more than 16384 pixels
                along a side.
        """
        return _OneSizeConverter(self, height, width)

    def _resized_size(self, height, width):
        """Of (H, W), the size before the crop: the uncropped size, or one that just covers it."""
        # A ratio such as 16 / 93 must give 93 back.
        new_height, new_width = (int(side / self.crop_ratio + 1e-6) for side in self.image_size)
        if not self.crop_to_aspect_ratio:
            return new_height, new_width
        # Sizes are tensors where tf.data does not know them.
        larger = (
            max
            if isinstance(height, int) and isinstance(width, int)
            else self.backend.numpy.maximum
        )
        return larger(new_height, height * new_width // width), larger(
            new_width, width * new_height // height
        )

    def _resize(self, images):
        """(..., H, W, C), any size, to (..., h, w, C)."""
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
        """To whole levels. A half goes up, as Pillow's, and a hair below it too, or the order of
        float32's sums would decide.
        """
        return self.backend.numpy.floor(self.backend.numpy.clip(images, 0.0, 255.0) + (0.5 + 1e-4))

    def _crop(self, images):
        sizes = self.backend.shape(images)[-3:-1]
        top, left = (_half_to_even(size - side) for size, side in zip(sizes, self.image_size))
        height, width = self.image_size
        images = images[..., top : top + height, left : left + width, :]
        # Inside tf.data the slice forgets its size, and `fit` needs it.
        batch = (-1,) if len(images.shape) == 4 else ()
        return self.backend.numpy.reshape(
            images, (*batch, height, width, self.backend.shape(images)[-1])
        )

    def _permute(self, images, axes):
        if len(images.shape) == 4:
            axes = (0, *(axis + 1 for axis in axes))
        return self.backend.numpy.transpose(images, axes)

    def _check_images(self, shape):
        if len(shape) not in (3, 4):
            raise ValueError(
                "`DeiTImageConverter` takes one image (rank 3) or a batch of images of one size "
                "(rank 4). "
                f"Received: images of shape {tuple(shape)}"
            )
        channels = shape[-3 if self.data_format == "channels_first" else -1]
        if channels is not None and len(self.scale) not in (1, channels):
            raise ValueError(
                f"`mean` and `std` are for {len(self.scale)} channels, but the images have "
                f"{channels}. "
                "Convert the images, or give one number for each of their channels. "
                f"Received: images of shape {tuple(shape)}, data_format={self.data_format!r}, "
                f"mean={self.mean}, std={self.std}"
            )

    def compute_output_shape(self, input_shape):
        self._check_images(input_shape)
        *batch, _, _, _ = input_shape
        channels = input_shape[-3 if self.data_format == "channels_first" else -1]
        if self.data_format == "channels_first":
            return (*batch, channels, *self.image_size)
        return (*batch, *self.image_size, channels)

    def get_config(self):
        config = super().get_config()
        # They follow from mean and std.
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
                f"{resized[1]} before the crop. "
                f"Cut them to a shape nearer to {self.image_size[0]} x {self.image_size[1]} first."
            )
        self._raw_size = (height, width)
        # The resize is linear along each axis, so what it makes of the unit vectors is its matrix.
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


def _per_channel(value):
    return tuple(float(v) for v in np.atleast_1d(value))


def _half_to_even(difference):
    """`round(difference / 2)` as Python rounds, for ints and tensors: torchvision places its centre
    crop so.
    """
    half = difference // 2
    return half + (difference % 2) * (half % 2)
