"""Measures the speed and the accuracy of token merging.

    KERAS_BACKEND=tensorflow python -m benchmarks.merging

Speed: throughput of a published architecture for several numbers of tokens to remove, timed in
turns. Accuracy: that of the digits model on test images of scikit-learn's digits.
"""

import time

import keras
import numpy as np
from absl import app, flags

from benchmarks import digits
from benchmarks.flops import forward_flops
from benchmarks.frameworks import framework
from keras_deit.models import DeiTImageClassifier

FLAGS = flags.FLAGS
flags.DEFINE_string(
    "preset",
    "deit_small_distilled_patch16_224",
    "Name of a published preset; its weights are not needed.",
)
flags.DEFINE_list(
    "num_merged_tokens",
    ["0", "4", "8", "13", "16"],
    "Numbers of tokens to remove per block, of 196 patches.",
)
flags.DEFINE_list(
    "digits_num_merged_tokens",
    ["0", "1", "2", "4", "8", "12"],
    "The same for the digits model, with 64 patches.",
)
flags.DEFINE_integer("batch_size", 8, "Number of images per step.", lower_bound=1)
flags.DEFINE_enum("device", "cpu", ["cpu", "gpu", "tpu"], "Device to run on.")
flags.DEFINE_integer("rounds", 10, "Number of turns.", lower_bound=1)


def main(_):
    print(throughput([int(number) for number in FLAGS.num_merged_tokens]))
    print()
    print(accuracy([int(number) for number in FLAGS.digits_num_merged_tokens]))


def throughput(numbers):
    run = framework(keras.backend.backend(), FLAGS.device)
    steps, seconds, gflops = {}, {}, {}
    for number in numbers:
        model = DeiTImageClassifier.from_preset(
            FLAGS.preset,
            load_weights=False,
            preprocessor=None,
            dtype="float32",
            num_merged_tokens=number,
        )
        shape = (FLAGS.batch_size, *model.backbone.image_shape)
        images = run.place(np.random.default_rng(0).normal(size=shape).astype("float32"))
        call = run.keras_inference(model, True, images)
        run.wait(call(images))
        steps[number] = lambda call=call, images=images: call(images)
        seconds[number] = []
        gflops[number] = (
            forward_flops(model.backbone.get_config(), model.num_classes, len(model.token_logits))
            / 1e9
        )
    for _ in range(FLAGS.rounds):
        for number, step in steps.items():
            started = time.perf_counter()
            run.wait(step())
            seconds[number].append(time.perf_counter() - started)
    medians = {number: float(np.median(values)) for number, values in seconds.items()}
    lines = ["| merged in each block | GFLOP | images/s | to none |", "| --- | --- | --- | --- |"]
    for number, median in medians.items():
        ratio = medians[numbers[0]] / median
        lines.append(
            f"| {number} | {gflops[number]:.1f} | {FLAGS.batch_size / median:.1f} | {ratio:.2f} |"
        )
    return "\n".join(lines)


def accuracy(numbers):
    images, labels = digits.test_digits()
    lines = ["| merged in each block | test accuracy | as without |", "| --- | --- | --- |"]
    unmerged = None
    for number in numbers:
        model = DeiTImageClassifier.from_preset(digits.PRESET, num_merged_tokens=number)
        found = model.predict(images, verbose=0).argmax(axis=-1)
        unmerged = found if unmerged is None else unmerged
        lines.append(
            f"| {number} | {np.mean(found == labels):.1%} | {np.mean(found == unmerged):.1%} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    app.run(main)
