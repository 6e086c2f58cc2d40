"""Compares an exported model with Keras, and times it."""

import math
import statistics
import time

import numpy as np
from exporting.sizes import ANY
from flag_errors import of_flag
from keras import ops

from keras_deit.data_formats import join_image_shape
from keras_deit.visualization import read_photograph

TOLERANCE = 1e-4
INT8_TOLERANCE = 0.1  # of the largest value; on the digits 0.02, with the same predictions
TIMED_CALLS = 20


def images_to_compare(classifier, size, paths, batch_size):
    """Batches of images for the exported model.

    Args:
        classifier: the Keras classifier.
        size: see `read_size`.
        paths: photographs, or empty for smooth noise.
        batch_size: batch size of the exported model, or `None` for any.
    """
    backbone, converter = classifier.backbone, classifier.preprocessor
    channels = backbone.num_channels
    if converter is None:
        image_size = [
            side or 2 * patch for side, patch in zip(backbone.image_size, backbone.patch_size)
        ]
        shape = join_image_shape(image_size, channels, backbone.data_format)
        images = np.random.default_rng(0).normal(size=(2, *shape)).astype("float32")
        return _batches_of_sizes(images, batch_size, backbone)
    with of_flag("photographs", ",".join(map(str, paths))):
        images = read_images(paths, classifier, size)
    if size is None:
        return _batches_of_sizes(np.concatenate(images), batch_size, backbone)
    # Raw images may differ in size.
    groups = images if size == ANY else [np.concatenate(images)]
    return [batch for each in groups for batch in _batches(each, batch_size)]


def read_images(paths, classifier, size):
    """Inputs of the exported model, each (1, ...). See `images_to_compare` for the arguments."""
    backbone, converter = classifier.backbone, classifier.preprocessor
    channels = backbone.num_channels
    images = [read_photograph(path, channels) for path in paths] or smooth_noise(channels)
    if size not in (None, ANY):
        images = [resized(image, size) for image in images]
    channels_first = backbone.data_format == "channels_first"
    images = [(image.transpose(2, 0, 1) if channels_first else image)[None] for image in images]
    if size is not None:
        return images
    return [ops.convert_to_numpy(converter(image)) for image in images]


def _batches_of_sizes(images, batch_size, backbone):
    """Batches of converted images; for images of any size, also twice as high, and as wide."""
    batches = _batches(images, batch_size)
    if None not in backbone.image_size:
        return batches
    height = 2 if backbone.data_format == "channels_first" else 1
    others = [np.concatenate([batches[-1]] * 2, axis) for axis in (height, height + 1)]
    return [*batches, *others]


def _batches(images, batch_size):
    """Batches of a fixed size, filled by repeating images; or one image, and then several."""
    if batch_size is None:
        return [images[:1], _repeated(images, len(images) + 1)]
    count = math.ceil(len(images) / batch_size)
    return np.split(_repeated(images, count * batch_size), count)


def _repeated(images, count):
    return np.resize(images, (count, *images.shape[1:]))


def smooth_noise(channels):
    """Two fixed images."""
    noise = np.random.default_rng(0).integers(0, 256, (2, 12, 16, channels))
    return [resized(image, (360, 480)) for image in noise]


def resized(image, size):
    """Resizes (height, width, channels), 0 to 255, to (*size, channels), uint8."""
    image = ops.image.resize(image, size, "bicubic", antialias=True, data_format="channels_last")
    return np.clip(np.rint(ops.convert_to_numpy(image)), 0, 255).astype("uint8")


def compare(run, expect, images, int8=False):
    """Compares the outputs of two models.

    Returns:
        The largest |difference| and the share of equal predictions.

    Raises:
        ValueError: if the difference is above `TOLERANCE`, or above `INT8_TOLERANCE` of the largest
            value with `int8`.
    """
    differences, shares, same = [], [], []
    for batch in images:
        found, expected = run(batch), expect(batch)
        for name in expected:
            difference = np.abs(found[name] - expected[name]).max()
            limit = INT8_TOLERANCE * np.abs(expected[name]).max() if int8 else TOLERANCE
            differences.append(difference)
            shares.append(difference / limit)
        same.extend(found["logits"].argmax(axis=-1) == expected["logits"].argmax(axis=-1))
    difference = np.max(differences)  # unlike Python's, NumPy's maximum keeps NaN
    if not np.max(shares) <= 1:
        limit = f"{INT8_TOLERANCE:.0%} of the largest value" if int8 else f"{TOLERANCE:.0e}"
        raise ValueError(
            f"The outputs of the exported model differ from Keras by up to {difference:.1e}. At "
            f"most {limit} was expected."
        )
    return difference, np.mean(same)


def milliseconds_per_image(run, images):
    """Median time."""
    seconds = []
    for _ in range(TIMED_CALLS):
        start = time.perf_counter()
        run(images)
        seconds.append(time.perf_counter() - start)
    return 1e3 * statistics.median(seconds) / len(images)
