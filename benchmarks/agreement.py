"""Measures how often a faster way to run the model predicts the same class.

    KERAS_BACKEND=tensorflow python -m benchmarks.agreement

The digits model predicts the test images of scikit-learn's digits in float32 and in each of the
other ways. int8 is calibrated on training images.
"""

import pathlib
import tempfile

import keras
import numpy as np
from absl import app, flags

from benchmarks import digits
from benchmarks.subjects import ONLY_BACKEND, SUBJECTS, NotSupportedError, Request
from keras_deit.models import DeiTImageClassifier

flags.DEFINE_list(
    "ways",
    [
        "keras_deit:bfloat16",
        "keras_deit:int8",
        "keras_deit_onnxruntime:int8",
        "keras_deit_openvino:bfloat16",
        "keras_deit_openvino:int8",
    ],
    "Ways to run the model, as subject:dtype.",
)


def main(_):
    classifier = DeiTImageClassifier.from_preset(digits.PRESET)
    images, labels = digits.test_digits()
    training_images, _ = digits.training_digits()
    expected = classifier.predict(images, verbose=0)
    images = keras.ops.convert_to_numpy(classifier.preprocessor(images))
    lines = [
        "| run by | dtype | same prediction | test accuracy | largest error of a logit |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines.append(f"| keras_deit | float32 | | {accuracy(expected, labels)} | |")
    with tempfile.TemporaryDirectory() as folder:
        classifier.save_to_preset(pathlib.Path(folder) / "keras_deit")
        calibration = keras.ops.convert_to_numpy(
            classifier.preprocessor(training_images[: len(images)])
        )
        np.savez(pathlib.Path(folder) / "case.npz", images=calibration)
        for way in flags.FLAGS.ways:
            subject, dtype = way.split(":")
            request = Request(
                subject,
                digits.PRESET,
                "inference",
                ONLY_BACKEND.get(subject, keras.backend.backend()),
                dtype,
                False,
                len(images),
                "cpu",
                None,
                None,
                folder,
            )
            try:
                found = SUBJECTS[subject](request).logits(images)
            except (NotSupportedError, ImportError) as error:
                lines.append(f"| {subject} | {dtype} | {error} | | |")
                continue
            same = np.mean(found.argmax(axis=-1) == expected.argmax(axis=-1))
            error = np.abs(found - expected).max() / np.abs(expected).max()
            lines.append(
                f"| {subject} | {dtype} | {same:.1%} | {accuracy(found, labels)} | {error:.1%} of "
                "the largest |"
            )
    print("\n".join(lines))


def accuracy(logits, labels):
    return f"{np.mean(logits.argmax(axis=-1) == labels):.1%}"


if __name__ == "__main__":
    app.run(main)
