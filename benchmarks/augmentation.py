"""Measures how many training images per second each augmentation pipeline gives.

    python -m benchmarks.augmentation --batch_size 32

The pipelines take turns on two photographs of scikit-learn, 640 x 427 pixels, read repeatedly
through `tf.data`: the recipes of this package, and the first recipe composed of Keras layers.
timm's transforms run image by image, as in each process of its loader.
"""

import os
import time

import numpy as np
import tensorflow as tf
from absl import app, flags
from sklearn.datasets import load_sample_images

from keras_deit.layers import DeiTImageConverter
from keras_deit.training import RECIPES, batches

FLAGS = flags.FLAGS
flags.DEFINE_integer("batch_size", 32, "Number of images per batch.", lower_bound=2)
flags.DEFINE_integer("image_size", 224, "Height and width of the images in pixels.", lower_bound=16)
flags.DEFINE_integer("batches", 4, "Number of batches per turn.", lower_bound=1)
flags.DEFINE_integer("rounds", 5, "Number of turns.", lower_bound=1)
NUM_CLASSES = 1000


def ours(name):
    def make():
        converter = DeiTImageConverter(FLAGS.image_size, data_format="channels_last")
        images = photographs().map(lambda image: (image, 1))
        recipe = RECIPES[name].augmentation
        found = batches.training_batches(
            images, recipe, converter, NUM_CLASSES, FLAGS.batch_size, shuffle_buffer_size=8
        )
        return found.as_numpy_iterator()

    return make


def keras_core():
    """Keras layers for `RECIPES["deit"]`, as far as they exist: its random crop cannot resize."""
    import keras

    size, options = FLAGS.image_size, {"data_format": "channels_last"}
    resize = keras.layers.Resizing(size, size, "bicubic", antialias=True, **options)
    flip = keras.layers.RandomFlip("horizontal", **options)
    rand_augment = keras.layers.RandAugment((0, 255), num_ops=2, factor=0.9, **options)
    erasing = keras.layers.RandomErasing(0.25, **options)
    mixup, cutmix = keras.layers.MixUp(0.8, **options), keras.layers.CutMix(1.0, **options)

    def many(images, labels):
        images = rand_augment(flip(images, training=True), training=True)
        batch = {
            "images": erasing(images, training=True),
            "labels": tf.one_hot(labels, NUM_CLASSES),
        }
        return tf.cond(
            tf.random.uniform(()) < 0.5,
            lambda: mixup(batch, training=True),
            lambda: cutmix(batch, training=True),
        )

    dataset = photographs().map(
        lambda image: (tf.cast(resize(image), tf.float32), 1), tf.data.AUTOTUNE
    )
    dataset = dataset.batch(FLAGS.batch_size, drop_remainder=True)
    return dataset.map(many, tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE).as_numpy_iterator()


def timm():
    """Without MixUp, which timm's loader runs on the accelerator."""
    from PIL import Image
    from timm.data import create_transform

    transform = create_transform(
        FLAGS.image_size,
        is_training=True,
        auto_augment="rand-m9-mstd0.5-inc1",
        interpolation="bicubic",
        re_prob=0.25,
    )
    images = [Image.fromarray(image) for image in load_sample_images().images]
    while True:
        yield np.stack([transform(images[index % 2]) for index in range(FLAGS.batch_size)])


def photographs():
    images = tf.constant(np.stack(load_sample_images().images))
    return tf.data.Dataset.from_tensor_slices(images).repeat(100_000)


WAYS = {
    "keras_deit, DeiT": ours("deit"),
    "keras_deit, DeiT III": ours("deit3_small"),
    "Keras core, DeiT": keras_core,
    "timm, DeiT": timm,
}


def seconds_per_batch(iterator):
    """Restarts the pipeline in every turn, because prefetching would continue during others."""
    next(iterator)
    started = time.perf_counter()
    for _ in range(FLAGS.batches):
        next(iterator)
    return (time.perf_counter() - started) / FLAGS.batches


def main(_):
    seconds, missing = {name: [] for name in WAYS}, {}
    for _ in range(FLAGS.rounds):
        for name, make in WAYS.items():
            try:
                seconds[name].append(seconds_per_batch(make()))
            except ImportError as error:
                missing[name] = error
    print("| pipeline | images/s | images/s per core |")
    print("| --- | --- | --- |")
    for name in WAYS:
        if name in missing:
            print(f"| {name} | not installed: {missing[name]} | |")
        else:
            rate = FLAGS.batch_size / np.median(seconds[name])
            cores = 1 if name.startswith("timm") else os.cpu_count()
            print(f"| {name} | {rate:.0f} | {rate / cores:.0f} |")


if __name__ == "__main__":
    app.run(main)
