"""Does distillation help? Trains small students with and without a teacher.

    pip install ".[tensorflow,examples]" && python tools/distillation_table.py

Writes the table of docs/distil.md. The data are scikit-learn's digits: 600 to train on, 1197 to
test on. For each of 5 seeds, a convolutional teacher trains on the 600 digits and teaches two of
the four students. All see the same augmented images in the same order, for 60 epochs. It takes half
an hour on two cores.

Nothing was tuned on the 1197 digits: the learning rate is that of tools/train_digits.py, and the
settings of soft distillation are the paper's. docs/distillation.json keeps the results of each
seed, so an interrupted run resumes after its last finished seed.
"""

import os
import pathlib
import statistics

# Keeps TensorFlow's log messages out of the output.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from absl import app, flags
from distilling.digits import BATCH_SIZE, accuracy, augmented, load, optimizer
from distilling.results import resume
from markdown_section import write_section

from keras_deit.models import DeiTBackbone, DeiTDistiller, DeiTImageClassifier

FLAGS = flags.FLAGS
flags.DEFINE_integer("seeds", 5, "Number of trainings of each kind.", lower_bound=2)
flags.DEFINE_integer("epochs", 60, "Epochs of each student and teacher.", lower_bound=1)
flags.DEFINE_integer(
    "training_images", 600, "Number of images to train on; the rest is for testing.", lower_bound=64
)
flags.DEFINE_string("output", "docs/distillation.json", "JSON file of the results.")
flags.DEFINE_string("page", "docs/distil.md", "Page with the table.")
ROWS = {
    "teacher": "teacher, convolutional",
    "alone": "student alone, one token",
    "two_tokens": "student alone, both tokens on the labels",
    "hard": "hard distillation, alpha 0.5",
    "soft": "soft distillation, alpha 0.1, temperature 3",
}


def train(model, training, seed):
    model.compile(
        optimizer(FLAGS.epochs * (len(training[0]) // BATCH_SIZE)),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.fit(augmented(*training, seed), epochs=FLAGS.epochs, shuffle=False, verbose=0)


def build_teacher():
    layers = [keras.Input((16, 16, 1))]
    for filters in (32, 64, 128):
        layers += [
            keras.layers.Conv2D(filters, 3, padding="same", use_bias=False),
            keras.layers.BatchNormalization(),
            keras.layers.Activation("relu"),
            keras.layers.MaxPooling2D(),
        ]
    return keras.Sequential(
        [*layers, keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(10)]
    )


def build_student(distilled):
    backbone = DeiTBackbone(
        (16, 16, 1), 4, 4, 4, 64, 256, use_distillation_token=distilled, drop_path_rate=0.1
    )
    return DeiTImageClassifier(backbone, 10)


def agreement(teacher, training, seed):
    """How often the teacher predicts the label of a training image, and so adds no information."""
    batches = list(augmented(*training, seed).as_numpy_iterator())
    same = [teacher.predict_on_batch(images).argmax(-1) == labels for images, labels in batches]
    return float(np.concatenate(same).mean())


def run(seed, training, test):
    """Test accuracy of each row of the table, and the teacher's agreement with the labels."""
    keras.utils.set_random_seed(seed)
    teacher = build_teacher()
    train(teacher, training, seed)
    found = {"teacher": accuracy(teacher, test), "agreement": agreement(teacher, training, seed)}
    students = {
        "alone": lambda: build_student(False),
        "two_tokens": lambda: build_student(True),
        "hard": lambda: DeiTDistiller(build_student(True), teacher),
        "soft": lambda: DeiTDistiller(
            build_student(True), teacher, "soft", alpha=0.1, temperature=3.0
        ),
    }
    for name, build in students.items():
        keras.utils.set_random_seed(seed)
        model = build()
        train(model, training, seed)
        found[name] = accuracy(getattr(model, "student", model), test)
    return found


def table(results):
    """Mean and standard deviation by row, and how often it beats the student without a teacher."""
    lines = [
        "| | accuracy, mean | standard deviation | better than alone |",
        "| --- | --- | --- | --- |",
    ]
    for name, title in ROWS.items():
        values = [result[name] for result in results]
        wins = sum(result[name] > result["alone"] for result in results)
        better = "" if name in ("teacher", "alone") else f"{wins} of {len(results)}"
        lines.append(
            f"| {title} | {statistics.mean(values):.1%} | {statistics.stdev(values):.1%} | "
            f"{better} |"
        )
    agreed = statistics.mean(result["agreement"] for result in results)
    return (
        "\n".join(lines)
        + f"\n\nOn the augmented training images, the teacher predicts the label {agreed:.1%} of "
        "the time."
    )


def main(_):
    settings = {name: FLAGS[name].value for name in ("epochs", "training_images")}
    training, test = load(FLAGS.training_images)
    results = resume(FLAGS.output, settings, FLAGS.seeds, lambda seed: run(seed, training, test))
    write_section(pathlib.Path(FLAGS.page), "distillation", table(results))
    print(table(results))


if __name__ == "__main__":
    app.run(main)
