"""The small classifiers, students and teachers that the tests of models share."""

import keras
import numpy as np

from tests import helpers
from tests.conftest import BACKEND
from tests.helpers import randomize

# Compiling takes longer than these few steps, except on JAX, where eager steps take longer.
JIT = BACKEND == "jax"
CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
LOSS = {"loss": CROSS_ENTROPY, "metrics": ["accuracy"], "jit_compile": JIT}


def tiny_classifier(backbone_overrides=None, **overrides):
    """One block: the backbone has tests of its own, and a classifier compiles."""
    return helpers.tiny_classifier({"num_layers": 1, **(backbone_overrides or {})}, **overrides)


def tiny_student(rng=None, **overrides):
    student = helpers.tiny_classifier({"num_layers": 1}, **{"preprocessor": None, **overrides})
    return student if rng is None else randomize(student, rng)


def tiny_teacher(rng, shape=(12, 32, 3), classes=5):
    """With batch normalization and dropout, which show whether it runs in inference mode."""
    layers = keras.layers
    teacher = keras.Sequential(
        [
            keras.Input(shape),
            layers.AveragePooling2D(4),
            layers.Flatten(),
            layers.BatchNormalization(),
            layers.Dropout(0.5),
            layers.Dense(classes),
        ],
        name="teacher",
    )
    randomize(teacher, rng)
    teacher.layers[2].moving_variance.assign(rng.uniform(0.5, 2.0, 72))
    return teacher


def log_softmax(x):
    x = x.astype("float64") - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def cross_entropy(logits, labels):
    return -log_softmax(logits)[np.arange(len(labels)), labels]


def kl_div_of_official_code(student, teacher, temperature):
    """The loss of facebookresearch/deit, losses.py: KL divergence times T * T, divided by the
    number of elements.
    """
    log_p, log_q = log_softmax(teacher / temperature), log_softmax(student / temperature)
    return (np.exp(log_p) * (log_p - log_q)).sum() * temperature**2 / student.size


class OneBatch(keras.utils.PyDataset):
    """A dataset of one batch."""

    num_batches = 1

    def __init__(self, *batch):
        super().__init__()
        self.batch = batch

    def __getitem__(self, index):
        return self.batch
