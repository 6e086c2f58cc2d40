"""Measures what a model for images of any size costs, beside a model of each size.

    KERAS_BACKEND=tensorflow python -m benchmarks.any_size

The two models take turns on the same images. Their only difference is that the first resamples its
positions in every step.
"""

import time

import keras
import numpy as np
from absl import app, flags

from benchmarks.frameworks import framework
from keras_deit.models import DeiTImageClassifier

FLAGS = flags.FLAGS
flags.DEFINE_string(
    "preset", "deit_tiny_patch16_224", "Name of a published preset; its weights are not needed."
)
flags.DEFINE_list("image_size", ["224", "384"], "Heights and widths of the images in pixels.")
flags.DEFINE_integer("batch_size", 1, "Number of images per step.", lower_bound=1)
flags.DEFINE_enum("device", "cpu", ["cpu", "gpu", "tpu"], "Device to run on.")
flags.DEFINE_integer("rounds", 50, "Number of turns.", lower_bound=1)


def main(_):
    print("| backend | pixels | one size, ms | any size, ms | ratio (middle half) |")
    print("| --- | --- | --- | --- | --- |")
    for size in map(int, FLAGS.image_size):
        print(f"| {keras.backend.backend()} | {size} | {' | '.join(compare(size))} |")


def compare(size):
    run = framework(keras.backend.backend(), FLAGS.device)
    shape = (FLAGS.batch_size, size, size, 3)
    images = run.place(np.random.default_rng(0).normal(size=shape).astype("float32"))
    steps, seconds = [], [[], []]
    for image_shape in ((size, size, 3), (None, None, 3)):
        model = DeiTImageClassifier.from_preset(
            FLAGS.preset,
            load_weights=False,
            preprocessor=None,
            dtype="float32",
            image_shape=image_shape,
        )
        steps.append(run.keras_inference(model, True, images))
        run.wait(steps[-1](images))
    for _ in range(FLAGS.rounds):
        for step, times in zip(steps, seconds):
            started = time.perf_counter()
            run.wait(step(images))
            times.append(time.perf_counter() - started)
    one, any_size = np.array(seconds)
    low, median, high = np.quantile(any_size / one, (0.25, 0.5, 0.75))
    return [
        f"{1e3 * np.median(one):.1f}",
        f"{1e3 * np.median(any_size):.1f}",
        f"{median:.2f} ({low:.2f} to {high:.2f})",
    ]


if __name__ == "__main__":
    app.run(main)
