"""Runs a classifier on images and counts its answers. An interrupted run resumes."""

import json
import sys
import time

import keras
import numpy as np
from evaluation.batches import check_converter, label_reader, numpy_batches
from evaluation.worst_images import keep_worst
from flag_errors import of_flag

from keras_deit.atomic import atomic_file
from keras_deit.models import DeiTImageClassifier

BATCHES_BETWEEN_SAVES = 20
COUNTS = ("seen", "corrupt", "top1", "top5", "real", "real_images", "timed_images", "seconds")


def first_counts():
    """Counts before the first image.

    `seen`, `corrupt`, `top1`, `top5` and `real` are numbers of images: read or not, unreadable, and
    answered correctly. `real_images` is the number of images with ReaL labels. `seconds` is the
    time for `timed_images`. `answers` is described in class_report.py, `worst` in worst_images.py.
    """
    return {**dict.fromkeys(COUNTS, 0), "answers": {}, "worst": []}


def count_answers(options, handle, images, real_labels, progress):
    """Counts the correct answers of a classifier.

    Args:
        options: the flags.
        handle: preset of the classifier.
        images: `ImageFolder` or `TfdsImages`.
        real_labels: list of classes per image, or `None`.
        progress: `Progress`, which knows how far an interrupted run came.

    Returns:
        (counts, the classifier).
    """
    with of_flag("preset", handle):
        classifier = load_classifier(handle, options)
        unreadable = {}
        read = label_reader(classifier, images, unreadable)
    counts = progress.read()
    # The batches are converted already.
    converter, classifier.preprocessor = classifier.preprocessor, None
    start, end = counts["seen"], len(images)
    batches = []
    if start < end:
        batches = numpy_batches(
            images, start, converter, classifier.num_classes, options.batch_size, read
        )
        print(f"{handle}: image {start + 1} to {end}")
    bar = keras.utils.Progbar(end - start, stateful_metrics=["top-1 (%)"], unit_name="image")
    clock = None
    for index, (inputs, labels, weights) in enumerate(batches, start=1):
        logits = np.asarray(classifier.predict_on_batch(inputs), "float32")
        numbers = np.arange(counts["seen"], counts["seen"] + int(weights.sum()))
        good = _readable_rows(numbers, unreadable, counts)
        if np.isnan(logits[good]).any():
            raise ValueError(f"--preset {handle}: The outputs are NaN. Use another --dtype.")
        real = [real_labels[number] for number in numbers[good]] if real_labels else []
        correct = labels[good].argmax(axis=-1)
        add_answers(counts, logits[good], correct, real)
        keep_worst(counts["worst"], numbers[good], probabilities(classifier, logits[good]), correct)
        now = time.perf_counter()
        if clock is not None:  # the first batch compiles the model
            counts["timed_images"] += len(numbers)
            counts["seconds"] += now - clock
        clock = now
        counts["seen"] += len(numbers)
        if index % BATCHES_BETWEEN_SAVES == 0 or counts["seen"] == end:
            progress.write(counts)
        accuracy = 100 * share(counts["top1"], num_read(counts))
        bar.update(counts["seen"] - start, [("top-1 (%)", accuracy)])
    classifier.preprocessor = converter
    return counts, classifier


def probabilities(classifier, logits):
    """Softmax of the logits. What an `activation` returned is left as it is."""
    if classifier.activation is not keras.activations.linear:
        return logits
    exponentials = np.exp(logits.astype("float64") - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def load_classifier(handle, options):
    overrides = {"dtype": options.dtype, "crop_ratio": options.crop_ratio}
    overrides = {name: value for name, value in overrides.items() if value is not None}
    classifier = DeiTImageClassifier.from_preset(handle, **overrides)
    check_converter(classifier)
    return classifier


def _readable_rows(numbers, unreadable, counts):
    """Rows of a batch whose images could be read. The others are printed and counted."""
    for number in numbers:
        if number in unreadable:
            counts["corrupt"] += 1
            print(f"\nSkipped: {unreadable[number]}", file=sys.stderr)
    return [row for row, number in enumerate(numbers) if number not in unreadable]


def add_answers(counts, logits, labels, real):
    best = np.argsort(-logits, axis=-1, kind="stable")[:, :5]
    hits = best == labels[:, None]
    counts["top1"] += int(hits[:, 0].sum())
    counts["top5"] += int(hits.sum())
    counts["real"] += sum(int(answer) in classes for answer, classes in zip(best[:, 0], real))
    counts["real_images"] += sum(bool(classes) for classes in real)
    for pair in zip(labels.tolist(), best[:, 0].tolist()):
        pair = " ".join(map(str, pair))
        counts["answers"][pair] = counts["answers"].get(pair, 0) + 1


def num_read(counts):
    return counts["seen"] - counts["corrupt"]


def share(part, whole):
    return part / whole if whole else 0.0


class Progress:
    """The counts of an interrupted run, in a file.

    Args:
        path: the file.
        settings: dict. Counts of other settings, or of another version of this program, are
            ignored.
    """

    def __init__(self, path, settings):
        self.path, self.settings = path, settings

    def read(self):
        if not self.path.exists():
            return first_counts()
        try:
            content = json.loads(self.path.read_text())
            settings, counts = content["settings"], content["counts"]
            fits = settings == self.settings and counts.keys() == first_counts().keys()
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(
                f"{self.path} is damaged. Delete it to evaluate from the first image on."
            ) from error
        return counts if fits else first_counts()

    def write(self, counts):
        with atomic_file(self.path) as file:
            file.write_text(json.dumps({"settings": self.settings, "counts": counts}))

    def remove(self):
        self.path.unlink(missing_ok=True)
