"""What the distiller refuses, before the first step."""

import keras
import numpy as np
import pytest

from keras_deit.models import DeiTDistiller
from tests import helpers
from tests.helpers import images, numpy, raises, same_arrays
from tests.models.tiny import CROSS_ENTROPY, JIT, tiny_student, tiny_teacher

pytestmark = pytest.mark.backend


def test_wrong_arguments_are_refused(rng):
    student, teacher = tiny_student(), tiny_teacher(rng)
    with raises("`student` must be a `DeiTImageClassifier`. Received: student=None"):
        DeiTDistiller(None, teacher)
    with raises(
        "`student` must have a distillation head, which learns from the teacher. Use a backbone "
        "with "
        "`use_distillation_token=True`, or `DeiTImageClassifier.from_preset(name, "
        "use_distillation_token=True)`. "
        "Received: a student with one head"
    ):
        DeiTDistiller(tiny_student(use_distillation_head=False), teacher)
    with raises(
        "`student` must return logits: use `activation=None`. Received: activation='softmax'"
    ):
        DeiTDistiller(tiny_student(activation="softmax"), teacher)
    with raises(
        "`distillation_type` must be one of 'hard', 'soft'. Received: distillation_type='warm'"
    ):
        DeiTDistiller(student, teacher, "warm")
    with raises("`alpha` must be a number in [0, 1]. Received: alpha=1.5"):
        DeiTDistiller(student, teacher, alpha=1.5)
    with raises("`temperature` must be a number above 0. Received: temperature=0"):
        DeiTDistiller(student, teacher, temperature=0)
    with raises("`kl_reduction` must be one of 'batchmean', 'mean'. Received: kl_reduction='sum'"):
        DeiTDistiller(student, teacher, kl_reduction="sum")
    with raises(
        "`teacher` must be a Keras model or a function of images. Received: teacher='resnet'"
    ):
        DeiTDistiller(student, "resnet")
    with raises("`teacher` must be built and trained. To build it, call it on a batch of images."):
        DeiTDistiller(student, keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(5)]))
    with raises(
        "`save_teacher=True` needs a Keras model as teacher. Received: teacher=<built-in function "
        "max>"
    ):
        DeiTDistiller(student, max, save_teacher=True)
    with raises(
        "The teacher has a preprocessor and the student has none. Use a preprocessor for both, and "
        "train with raw images, or `preprocessor=None` for both, and train with preprocessed "
        "images."
    ):
        DeiTDistiller(student, helpers.tiny_classifier())
    with raises(
        "The teacher must return logits (batch, 5), one for each class of the student. Received: "
        "shape (None, 7)"
    ):
        DeiTDistiller(student, tiny_teacher(rng, classes=7))
    distiller = DeiTDistiller(student, teacher)
    with raises(
        "`loss` must take logits, such as "
        "`keras.losses.SparseCategoricalCrossentropy(from_logits=True)`. "
        "Received: loss='sparse_categorical_crossentropy'"
    ):
        distiller.compile("sgd", "sparse_categorical_crossentropy")
    with raises("`loss` must be a single loss for the class head. Received: loss={'class': 'mse'}"):
        distiller.compile("sgd", {"class": "mse"})


def test_data_that_do_not_fit_are_refused_before_the_first_step(rng):
    x, y = images(rng), np.asarray([0, 1, 2, 0])
    student = tiny_student()
    before = [numpy(weight) for weight in student.weights]

    usual_teacher = tiny_teacher(rng)

    def fit(message, x=x, y=y, teacher=usual_teacher, loss=CROSS_ENTROPY):
        distiller = DeiTDistiller(student, teacher)
        distiller.compile(keras.optimizers.SGD(1.0), loss, jit_compile=JIT)
        with pytest.raises(ValueError, match=message):
            distiller.fit(x, y, verbose=0)

    fit(
        "Labels must be whole numbers from 0 to 4, .* Received: labels from 0 to 5",
        y=np.asarray([0, 5, 2, 0]),
    )
    fit(
        "Labels must be whole numbers from 0 to 4, .* Received: labels from -1 to 2",
        y=np.asarray([0, -1, 2, 0]),
    )
    fit(
        "Images and teacher logits must be finite. Received: 1 values that are NaN or infinite",
        x=np.where(np.arange(x.size) == 7, np.nan, x.ravel()).reshape(x.shape),
    )
    fit(
        r"The loss takes labels as class indices, \(batch,\). For these labels, compile with "
        r"`loss=keras.losses.CategoricalCrossentropy\(from_logits=True\)`",
        y=np.eye(5, dtype="float32")[y],
    )
    fit(
        r"The loss takes labels as one value for each class, \(batch, 5\). For these labels, "
        r"compile with "
        r"`loss=keras.losses.SparseCategoricalCrossentropy\(from_logits=True\)`",
        loss=keras.losses.CategoricalCrossentropy(from_logits=True),
    )
    fit("There are no labels. Use `y=", y=None)
    fit(
        'Inputs must be images, or a dict with "images" and optionally "teacher_images" or '
        '"teacher_logits"',
        x={"image": x},
    )
    same_arrays(before, student.weights)


def test_a_switch_that_is_no_bool():
    """By its truth "no" would save the teacher."""
    with raises("`save_teacher` must be `True` or `False`. Received: save_teacher='no'"):
        DeiTDistiller(tiny_student(), None, save_teacher="no")
