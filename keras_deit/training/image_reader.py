"""Decodes images in a `tf.data` pipeline, from files or from the bytes of a prepared dataset."""

import io
import os

from keras_deit.arguments import check_choice
from keras_deit.images import check_file, decode_image
from keras_deit.training.require_tensorflow import tf

# Resizing must cover the model's input, so a longer image would fill the memory.
MAX_ASPECT_RATIO = 100


def image_reader(images, channels=3, upright=True, unreadable=None):
    """The `read` argument of `training_batches` and `evaluation_batches`.

    Every image is decoded as `keras_deit.visualization.read_photograph` does, so that a model is
    trained, evaluated and used on the same pixels.

    Args:
        images: `ImageFolder` or `TfdsImages`.
        channels: 3 for RGB or 1 for gray. Defaults to 3.
        upright: whether to rotate images as their EXIF tag says. Defaults to `True`. The published
            accuracies were measured without.
        unreadable: dict. If given, an image that cannot be read becomes one black pixel, and its
            `{number: reason}` is added here. If `None`, it raises an error.

    Returns:
        A function from an element of `images.dataset()`, (number, source, label), to (image of
        shape (height, width, channels), uint8, 0 to 255; label).

    Raises:
        ValueError: if `channels` is neither 1 nor 3.
    """
    check_choice("channels", channels, (1, 3))
    black = tf.zeros((1, 1, channels), tf.uint8).numpy()

    def decode(number, source):
        try:
            if images.are_files:
                file = name = check_file(os.fsdecode(source))
            else:
                file, name = io.BytesIO(source), f"Image {number} of {images.identity}"
            image = decode_image(file, name, channels, upright)
            _check_aspect_ratio(image, name)
        except ValueError as error:
            if unreadable is None:
                raise
            unreadable[int(number)] = str(error)
            return black
        return image

    def read(element):
        number, source, label = element
        image = tf.numpy_function(decode, [number, source], tf.uint8)
        return tf.ensure_shape(image, (None, None, channels)), label

    return read


def _check_aspect_ratio(image, name):
    height, width, _ = image.shape
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise ValueError(
            f"{name} is too narrow: its longer side may be at most {MAX_ASPECT_RATIO} times the "
            f"shorter. Crop it or remove it. Received: {width} x {height} pixels"
        )
