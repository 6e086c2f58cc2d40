"""The axes of an image in either data format, and its grid of patches."""

import keras

from keras_deit.arguments import check_choice

DATA_FORMATS = ("channels_last", "channels_first")


def check_data_format(data_format):
    """`data_format`, or Keras' default for `None`."""
    if data_format is None:
        return keras.config.image_data_format()
    return check_choice("data_format", data_format, DATA_FORMATS)


def axes_in_words(data_format):
    if data_format == "channels_first":
        return "(channels, height, width)"
    return "(height, width, channels)"


def split_image_shape(image_shape, data_format):
    """((height, width), channels) of an image shape, or of a batch shape's last three axes."""
    if data_format == "channels_first":
        channels, height, width = image_shape[-3:]
    else:
        height, width, channels = image_shape[-3:]
    return (height, width), channels


def join_image_shape(image_size, channels, data_format):
    """The inverse of `split_image_shape`."""
    if data_format == "channels_first":
        return (channels, *image_size)
    return (*image_size, channels)


def grid_size_of(image_size, patch_size):
    """(rows, columns) of the patches that cover an image; `None` where a side is not known."""
    return tuple(
        None if side is None else -(-side // patch) for side, patch in zip(image_size, patch_size)
    )
