"""How much of a model has to train? Trains parts of one on digits that are turned by 90 degrees.

    pip install ".[examples,train]" && python tools/tuning_table.py

Writes a table of docs/fine_tune.md. Each part of the digits model trains for five epochs with the
recipe `new_classes`, without augmentation, on 1150 digits. The accuracy is that of 360 others. It
takes minutes on two cores with KERAS_BACKEND=jax.
"""

import dataclasses
import os
import pathlib

# Keeps TensorFlow's log messages out of the output.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from absl import app, flags
from markdown_section import write_section
from sklearn.datasets import load_digits

from keras_deit.models import DeiTImageClassifier
from keras_deit.training import RECIPES, freeze_blocks, train_only

FLAGS = flags.FLAGS
flags.DEFINE_string("page", "docs/fine_tune.md", "Page with the table.")
NANO = "deit_nano_distilled_patch4_32_digits"
# Ten times the recipe's, because five epochs are short. The head's is ten times as high again.
LEARNING_RATE, EPOCHS, BATCH_SIZE = 3e-3, 5, 64
EVERYWHERE = ("qkv", "projection", "intermediate")


def everything(classifier):
    pass


def last_blocks(classifier):
    freeze_blocks(classifier, 2)


def part(name):
    return lambda classifier: train_only(classifier, name)


def lora(classifier):
    classifier.enable_lora(8, EVERYWHERE)


# (what trains beside the head, how, changes of the recipe)
ROWS = (
    ("everything", everything, {}),
    ("everything, `layer_decay=0.75`", everything, {"layer_decay": 0.75}),
    ("the last two of four blocks", last_blocks, {}),
    ("attention and positions", part("attention"), {}),
    ("LoRA of rank 8, all four layers of a block", lora, {}),
    ("biases", part("bias"), {}),
    ("nothing", part("head"), {}),
)


def turned_digits():
    """(images (N, 8, 8, 1), one-hot labels) to train on, and to test on."""
    digits = load_digits()
    images = np.rot90(np.round(digits.images[..., None] * (255 / 16)).astype("uint8"), axes=(1, 2))
    labels = np.eye(10, dtype="float32")[digits.target]
    return [(images[rows], labels[rows]) for rows in (slice(0, 1150), slice(1437, None))]


def train(training, test, choose, changes):
    """(number of trained parameters, accuracy)"""
    keras.utils.set_random_seed(0)
    classifier = DeiTImageClassifier.from_preset(NANO)
    choose(classifier)
    recipe = dataclasses.replace(RECIPES["new_classes"], learning_rate=LEARNING_RATE, **changes)
    images, labels = training
    optimizer = recipe.build_optimizer(
        classifier, len(images) // BATCH_SIZE, EPOCHS, BATCH_SIZE, ema_momentum=None
    )
    classifier.compile(optimizer, recipe.build_loss())
    classifier.fit(images, labels, BATCH_SIZE, EPOCHS, verbose=0)
    images, labels = test
    right = classifier.predict(images, verbose=0).argmax(-1) == labels.argmax(-1)
    trained = sum(int(np.prod(weight.shape)) for weight in classifier.trainable_weights)
    return trained, float(right.mean())


def main(_):
    training, test = turned_digits()
    lines = [
        "| what trains beside the head | parameters | accuracy |",
        "| --- | --- | --- |",
    ]
    for title, choose, changes in ROWS:
        trained, accuracy = train(training, test, choose, changes)
        lines.append(f"| {title} | {trained:,} | {accuracy:.1%} |")
        print(lines[-1], flush=True)
    write_section(pathlib.Path(FLAGS.page), "tune", "\n".join(lines))


if __name__ == "__main__":
    app.run(main)
