"""Images of any folder or dataset as batches for a classifier, with the labels of its outputs."""

import tensorflow as tf
from evaluation.labels import class_positions

from keras_deit import presets
from keras_deit.layers import DeiTImageConverter
from keras_deit.training.batches import evaluation_batches
from keras_deit.training.image_reader import image_reader


def check_converter(classifier):
    if not isinstance(classifier.preprocessor, DeiTImageConverter):
        raise ValueError(
            "The preset must have a `DeiTImageConverter` as its preprocessor. Save it again with "
            "`from_preset(handle, preprocessor=DeiTImageConverter(...)).save_to_preset(directory)`."
            f" Received: preprocessor={classifier.preprocessor!r}"
        )


def label_reader(classifier, images, unreadable):
    """`image_reader` with labels of the classifier instead of the folders."""
    positions = class_positions(classifier.labels, images.class_names)
    read_image = image_reader(
        images,
        classifier.backbone.num_channels,
        # The published accuracies ignore EXIF.
        upright=images.class_names != presets.imagenet_synsets(),
        unreadable=unreadable,
    )

    def read(element):
        image, label = read_image(element)
        return image, tf.gather(positions, label)

    return read


def numpy_batches(images, start, converter, num_classes, batch_size, read):
    """Yields the `evaluation_batches` of the images from number `start` on, as NumPy arrays."""
    rest = images.dataset().skip(start)
    batches = evaluation_batches(rest, converter, num_classes, batch_size, read)
    try:
        yield from batches.as_numpy_iterator()
    except tf.errors.InvalidArgumentError as error:
        raise ValueError(
            f"A label of {images.identity} is not one of its {len(images.class_names)} classes. "
            "Choose images that are labelled."
        ) from error
