"""GELU in a form that every export format takes."""

import math

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="keras_deit")
def gelu(x):
    """The exact GELU, `0.5 * x * (1 + erf(x / sqrt(2)))`.

    Equal to `keras.activations.gelu(x)`, which on TensorFlow is written with `Erfc`, an operator that ONNX Runtime refuses.

    Reference: [Hendrycks & Gimpel, 2016](https://arxiv.org/abs/1606.08415).
    """
    if keras.backend.backend() == "torch":  # eager: one kernel instead of four
        return ops.gelu(x, approximate=False)
    return 0.5 * x * (1.0 + ops.erf(x / math.sqrt(2.0)))
