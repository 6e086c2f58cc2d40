"""Labels that a classifier takes, and those it refuses before it compiles anything."""

import keras
import numpy as np
import pytest

from tests.helpers import raises, raw_images
from tests.models.tiny import LOSS, OneBatch, tiny_classifier

pytestmark = pytest.mark.backend

NOT_INDICES = "Labels must be whole numbers from 0 to 4, the class indices of the model. Number the classes from 0, or use a larger `num_classes`."


@pytest.mark.parametrize(
    ("loss", "labels", "message"),
    [
        ("indices", [0, 1, 5, 2], f"{NOT_INDICES} Received: labels from 0 to 5"),
        ("indices", [0, -1, 1, 2], f"{NOT_INDICES} Received: labels from -1 to 2"),
        ("indices", [0.5, 1.0, 1.0, 2.0], f"{NOT_INDICES} Received: labels from 0.5 to 2.0"),
        ("indices", [0, np.nan, 1, 2], f"{NOT_INDICES} Received: labels from nan to nan"),
        ("name", [[0], [1], [5], [2]], f"{NOT_INDICES} Received: labels from 0 to 5"),
        (
            "indices",
            ["ant", "bee", "cat", "dog"],
            "Labels must be numbers. Use class indices from 0 to 4. Received: labels of dtype <U3",
        ),
        (
            "indices",
            np.eye(5)[:4],
            "The loss takes labels as class indices, (batch,). For these labels, compile with "
            "`loss=keras.losses.CategoricalCrossentropy(from_logits=True)`. Received: labels of "
            "shape (4, 5)",
        ),
        (
            "name",
            np.zeros((4, 2)),
            "The loss takes labels as class indices, (batch,). Change their shape. Received: "
            "labels of shape (4, 2)",
        ),
        (
            "one-hot",
            [0, 1, 2, 3],
            "The loss takes labels as one value for each class, (batch, 5). For these labels, "
            "compile with `loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True)`. "
            "Received: labels of shape (4,)",
        ),
        (
            "one-hot",
            2 * np.eye(5)[:4],
            "Labels must be values from 0 to 1. Received: labels from 0.0 to 2.0",
        ),
        (
            "indices",
            None,
            "There are no labels. Use `y=`, or a dataset of (images, labels).",
        ),
    ],
)
def test_labels_that_do_not_fit(loss, labels, message, shared_classifier, rng):
    import tensorflow as tf

    losses = {
        "indices": LOSS["loss"],
        "name": "sparse_categorical_crossentropy",
        "one-hot": keras.losses.CategoricalCrossentropy(from_logits=True),
    }
    classifier, x = shared_classifier, raw_images(rng)
    classifier.compile("sgd", losses[loss], jit_compile=LOSS["jit_compile"])
    y = labels if labels is None else np.asarray(labels)
    of_batch = (x,) if y is None else (x, y)
    sources = [
        lambda: (x, labels),
        lambda: (OneBatch(*of_batch),),
        lambda: ((batch for batch in [of_batch]),),
    ]
    if "of shape" in message or y is None:  # of tf.data nothing else is known before
        sources.append(lambda: (tf.data.Dataset.from_tensors(of_batch),))
    for source in sources:
        for method in (classifier.fit, classifier.evaluate):
            with raises(message):
                method(*source())
    with raises(message):
        classifier.fit(
            x, np.eye(5)[:4] if loss == "one-hot" else np.zeros(4), validation_data=(x, labels)
        )
    assert np.isfinite(classifier.predict(x, verbose=0)).all()


def test_labels_that_fit(rng):
    import tensorflow as tf

    classifier, x = tiny_classifier(), raw_images(rng)
    fitting = [
        (
            keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1),
            [0, -1, 4, 4],
        ),
        ("sparse_categorical_crossentropy", tf.constant([[0], [1], [4], [4]])),
        (keras.losses.CategoricalCrossentropy(from_logits=True), [[0, 0, 0.7, 0.3000001, 0]] * 4),
        (keras.losses.CategoricalCrossentropy(from_logits=True), keras.ops.ones((4, 5))),
        ("mse", np.full((4, 5), -3.0)),  # another loss takes what it will
    ]
    classifier._checked(x)  # without a loss, labels do not matter
    for loss, labels in fitting:
        classifier.compile("sgd", loss)
        classifier._checked(x, labels)
    unknown = tf.data.Dataset.from_generator(lambda: [], (tf.uint8, tf.int32))
    classifier.compile("sgd", **LOSS)
    classifier._checked(unknown)
    one_class = tiny_classifier(num_classes=1, labels=None)
    one_class.compile("sgd", "binary_crossentropy")
    one_class._checked(x, [0, 1, 1, 0])
