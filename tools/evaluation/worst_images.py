"""The images with the highest loss: which they are, and a picture of them."""

import csv
import io

import keras
import numpy as np
import tensorflow as tf
from evaluation.batches import label_reader
from evaluation.labels import shortened
from matplotlib.figure import Figure

NUM_WORST = 24
NUM_COLUMNS = 6
COLUMNS = ("file", "class", "prediction", "probability(%)", "loss")
RIGHT, WRONG = "#1a7f37", "#b42318"


def keep_worst(worst, numbers, probabilities, labels):
    """Updates a list of the images with the highest cross-entropy, the highest first.

    Args:
        worst: list of `[loss, number of the image, class, prediction, probability of the
            prediction]`, as JSON can hold it.
        numbers: numbers of further images.
        probabilities: array (images, classes).
        labels: the class of each of these images.
    """
    rows = np.arange(len(labels))
    # -log(0) would be infinite, which JSON does not have.
    losses = -np.log(probabilities[rows, labels].clip(1e-30))
    answers = probabilities.argmax(axis=-1)
    columns = (losses, numbers, labels, answers, probabilities[rows, answers])
    worst.extend(list(map(list, zip(*(column.tolist() for column in columns)))))
    worst.sort(key=lambda row: (-row[0], row[1]))
    del worst[NUM_WORST:]


def worst_table(worst, images, labels):
    """The images as CSV, the highest loss first."""
    files = images.files if images.are_files else images.file_names()
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for loss, number, label, answer, probability in worst:
        writer.writerow(
            (
                files[number],
                labels[label],
                labels[answer],
                f"{100 * probability:.3f}",
                f"{loss:.4f}",
            )
        )
    return text.getvalue()


def seen_images(worst, images, classifier):
    """What the model sees of these images: arrays (height, width, 1 or 3) from 0 to 1."""
    converter, found = classifier.preprocessor, {}
    is_channels_first = converter.data_format == "channels_first"
    read = label_reader(classifier, images, {})
    wanted = tf.constant([number for _, number, *_ in worst], "int64")
    dataset = images.dataset().filter(
        lambda number, *_: tf.reduce_any(tf.cast(number, "int64") == wanted)
    )
    dataset = dataset.map(lambda *element: (element[0], read(element)[0]))
    for number, image in dataset.as_numpy_iterator():
        pixels = converter(image.transpose(2, 0, 1) if is_channels_first else image)
        pixels = np.asarray(keras.ops.convert_to_numpy(pixels), "float32")
        pixels = pixels.transpose(1, 2, 0) if is_channels_first else pixels
        found[int(number)] = (pixels * converter.std + converter.mean).clip(0, 1)
    return [found[number] for _, number, *_ in worst]


def plot_worst(worst, pictures, labels):
    """A sheet of the images, with class, prediction and probability.

    Args:
        worst: see `keep_worst`.
        pictures: what `seen_images` returns.
        labels: names of the classes.
    """
    columns = min(NUM_COLUMNS, len(worst))
    num_rows = -(-len(worst) // columns)
    height, width = pictures[0].shape[:2]
    figure = Figure(
        (1.7 * columns + 0.1, num_rows * (1.6 * min(height / width, 2) + 0.6) + 0.35),
        layout="constrained",
    )
    axes = list(figure.subplots(num_rows, columns, squeeze=False).flat)
    for axis in axes:
        axis.set_axis_off()
    for axis, picture, (_, _, label, answer, probability) in zip(axes, pictures, worst):
        interpolation = "nearest" if max(picture.shape[:2]) < 128 else "antialiased"
        axis.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation=interpolation)
        # Three lines; the text below takes the second and the third.
        # Labels are plain text: two $ in a label would be a formula.
        axis.set_title(
            f"{shortened(labels[label], 20)}\n\n",
            fontsize=8.5,
            fontweight="bold",
            parse_math=False,
        )
        below = axis.text(
            0.5,
            1.03,
            f"{shortened(labels[answer], 20)}\n{probability:.0%}",
            color=RIGHT if answer == label else WRONG,
            fontsize=8.5,
            ha="center",
            va="bottom",
            transform=axis.transAxes,
            parse_math=False,
        )
        below.set_in_layout(False)
    figure.suptitle("Bold: the class. Below: the prediction.", fontsize=9)
    return figure
