"""Gradients as training computes them, on any backend, and those of finite differences."""

import keras
import numpy as np

from tests.conftest import BACKEND
from tests.helpers import numpy


def trained_gradients(function, *arrays):
    """The gradients of the sum of `function(*arrays)`, in float32."""

    class Weights(keras.layers.Layer):
        def build(self, input_shape):
            self.values = [
                self.add_weight(shape=array.shape, name=f"array_{index}")
                for index, array in enumerate(arrays)
            ]

        def call(self, inputs):
            outputs = function(*(value + 0.0 for value in self.values))
            return inputs * keras.ops.sum(outputs)

    model = keras.Sequential([keras.Input((1,)), Weights()])
    for variable, array in zip(model.weights, arrays, strict=True):
        variable.assign(array)
    # The loss is the output, so that a step of 1.0 is the gradient.
    model.compile(
        keras.optimizers.SGD(1.0),
        lambda target, outputs: outputs,
        run_eagerly=BACKEND != "jax",
        jit_compile=BACKEND == "jax",
    )
    model.train_on_batch(np.ones((1, 1)), np.zeros((1, 1)))
    return [array - numpy(variable) for array, variable in zip(arrays, model.weights)]


def measured_gradients(function, *arrays, step=1e-4):
    """The same by central differences of a NumPy function, in float64."""
    gradients = []
    for index, array in enumerate(arrays):
        gradient = np.zeros(array.shape)
        for place in np.ndindex(array.shape):
            move = np.zeros(array.shape)
            move[place] = step
            above, below = (
                function(*arrays[:index], array + sign * move, *arrays[index + 1 :]).sum()
                for sign in (1, -1)
            )
            gradient[place] = (above - below) / (2 * step)
        gradients.append(gradient)
    return gradients
