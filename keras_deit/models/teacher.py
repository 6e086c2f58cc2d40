"""The teacher of a student: a function from images to logits."""

import contextlib

import keras
import numpy as np
from keras import ops


class Teacher:
    """The teacher as a function of images.

    Not a Keras object, so that Keras neither tracks nor saves it with the distiller.
    """

    def __init__(self, function, student, must_be_saved):
        is_layer = isinstance(function, keras.layers.Layer)
        if function is not None and not callable(function):
            raise ValueError(
                "`teacher` must be a Keras model or a function of images. "
                f"Received: teacher={function!r}"
            )
        if must_be_saved and function is not None and not is_layer:
            raise ValueError(
                "`save_teacher=True` needs a Keras model as teacher. "
                f"Received: teacher={function!r}"
            )
        self.function = function
        self._preprocessor = getattr(function, "preprocessor", None)
        if self._preprocessor is not None and student.preprocessor is None:
            raise ValueError(
                "The teacher has a preprocessor and the student has none. Use a preprocessor for "
                "both, and train with raw images, or `preprocessor=None` for both, and train with "
                "preprocessed images."
            )
        self._arguments = {}
        self.variables = []
        if is_layer and not function.built:
            raise ValueError(
                "`teacher` must be built and trained. To build it, call it on a batch of images."
            )
        with contextlib.suppress(
            AttributeError
        ):  # a subclassed model may not know its output shape
            check_logits(function.output_shape, student.num_classes)
        if is_layer:
            function.trainable = False
            self._arguments = {"training": False}
            self.variables = function.variables

    def convert(self, images):
        return images if self._preprocessor is None else self._preprocessor(images)

    def __call__(self, images):
        return self.function(images, **self._arguments)


def without_softmax(outputs):
    """Returns logits unchanged, and the logarithm of probabilities, which are valid logits.

    A teacher may be any function, so probabilities are recognised by their values: none is negative
    and each row sums to 1.
    """
    outputs = ops.cast(outputs, "float32")
    sums_to_one = ops.abs(ops.sum(outputs, axis=-1) - 1) < 1e-2  # bfloat16 rounds that much
    are_probabilities = ops.logical_and(ops.all(outputs >= 0), ops.all(sums_to_one))
    return ops.where(
        are_probabilities, ops.log(ops.maximum(outputs, np.finfo("float32").tiny)), outputs
    )


def check_logits(shape, num_classes):
    if len(shape) != 2 or shape[-1] != num_classes:
        raise ValueError(
            f"The teacher must return logits (batch, {num_classes}), one for each class of the "
            f"student. Received: shape {tuple(shape)}"
        )
