"""What is trained on: the images of --data, and batches of them."""

import dataclasses
import os
import pathlib

from absl import logging
from flag_errors import of_flag

from keras_deit.training import batches
from keras_deit.training.image_folder import ImageFolder
from keras_deit.training.image_reader import image_reader
from keras_deit.training.progressive_batches import progressive_batches
from keras_deit.training.tfds_images import TfdsImages

TFDS = "tfds:"
# Paths of files all fit into the shuffle buffer; the encoded images of TFDS may not.
TFDS_SHUFFLE_BUFFER = 10_000


def open_images(options, devices):
    """(training images, validation images)"""
    with of_flag("data", options.data):
        training, validation = (_open(options, part, devices) for part in ("train", "val"))
        if training.class_names != validation.class_names:
            raise ValueError(
                "The training and validation images must have the same classes. Received: "
                f"{', '.join(training.class_names)} and {', '.join(validation.class_names)}"
            )
        if len(training.class_names) < 2:
            raise ValueError(
                "Training a classifier needs at least two classes. Received: "
                f"{', '.join(training.class_names)}"
            )
    return training, validation


def open_validation_images(options, devices):
    """The validation images alone."""
    with of_flag("data", options.data):
        return _open(options, "val", devices)


def _open(options, part, devices):
    if options.data.startswith(TFDS):
        return TfdsImages.open(options.data.removeprefix(TFDS), training=part == "train")
    root = pathlib.Path(os.path.expanduser(options.data))
    return _open_folder(root / part, options.skip_broken_images, devices)


def _open_folder(directory, skip_broken, devices):
    images = ImageFolder.open(directory)
    # To skip the same images, every process must know all of them.
    shards = (1, 0) if skip_broken else (devices.num_processes, devices.process)
    unreadable = images.find_unreadable(*shards)
    if unreadable and not skip_broken:
        reasons = list(unreadable.values())
        raise ValueError(
            f"{len(unreadable)} images in {directory} cannot be read. Replace or remove them, or "
            f"skip them with --skip_broken_images. {' '.join(reasons[:5])}"
            f"{' ...' if len(reasons) > 5 else ''}"
        )
    images = images.without(unreadable)
    if images.skipped:
        logging.warning(
            "Skipped %d files that are not images, such as %s",
            len(images.skipped),
            ", ".join(images.skipped[:5]),
        )
    return images


def make_batches(training, validation, recipe, model, schedule, start, seed, devices):
    """Batches to train on from image number `start`, and batches to validate on.

    Returns:
        (training batches, validation batches, dict). While an epoch runs, the dict receives
        `{number: reason}` of each image that cannot be read, which is black in its batch.
    """
    unreadable = {}
    num_channels = model.num_channels
    augmentation = recipe.augmentation
    if num_channels != 3:
        logging.warning(
            "The images have %d channel: training without RandAugment, 3-Augment and color jitter, "
            "which need 3.",
            num_channels,
        )
        augmentation = dataclasses.replace(
            augmentation, rand_augment=False, three_augment=False, color_jitter=0.0
        )
    shared = {
        "converter": model.converter,
        "num_classes": len(training.class_names),
        "batch_size": schedule.batch_size // devices.num_processes,
        "num_shards": devices.num_processes,
        "shard": devices.process,
    }
    make, sizes = batches.training_batches, {}
    if model.image_sizes:
        make = progressive_batches
        sizes = {"image_sizes": model.image_sizes, "num_batches": schedule.steps}
    return (
        make(
            training.dataset(),
            augmentation,
            shuffle_buffer_size=len(training) if training.are_files else TFDS_SHUFFLE_BUFFER,
            read=image_reader(training, num_channels, unreadable=unreadable),
            seed=seed,
            start=start,
            **sizes,
            **shared,
        ),
        batches.evaluation_batches(
            validation.dataset(),
            read=image_reader(validation, num_channels, unreadable=unreadable),
            **shared,
        ),
        unreadable,
    )
