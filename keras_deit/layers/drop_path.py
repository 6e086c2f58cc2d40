"""Stochastic depth."""

import random
from typing import Any

import keras
from keras import ops

from keras_deit.arguments import check_rate, check_seed
from keras_deit.layers.inputs import as_floats, check_tensor


@keras.saving.register_keras_serializable(package="keras_deit")
class DropPath(keras.layers.Layer):
    """Drops a residual branch for random samples during training (stochastic depth).

    `outputs[b] = inputs[b] * keep[b] / (1 - rate)` with `keep[b]` 0 or 1 and
    `P(keep[b] = 0) = rate`. At inference, `outputs = inputs`. Equal to `keras.layers.Dropout` with
    one mask value for each sample, for inputs of any rank.

    Args:
        rate: float in [0, 1). Probability that a sample skips the branch.
        seed: int. Makes the sequence of masks reproducible. Defaults to `None`.

    Input shape:
        (batch, ...).

    Output shape:
        Same as the input shape.

    Raises:
        ValueError: if `rate` is outside [0, 1).

    Example:

    >>> outputs = DropPath(rate=0.5, seed=0)(np.ones((16, 1)), training=True)
    >>> np.unique(keras.ops.convert_to_numpy(outputs))
    (0.0, 2.0)

    Reference: [Huang et al., 2016](https://arxiv.org/abs/1603.09382).
    """

    def __init__(self, rate: float, seed: int | None = None, **kwargs: Any) -> None:
        rate, seed = check_rate("rate", rate), check_seed("seed", seed)
        super().__init__(**kwargs)
        self.rate = rate
        self.seed = seed
        # Drawn here, as `keras.layers.Dropout` does, so that it follows from the global seed.
        self._first_seed = random.randint(1, 10**9) if seed is None and rate > 0 else seed
        self.supports_masking = True

    def build(self, input_shape):
        # Here, so that its variable has the layer's path. `keras.layers.Dropout` numbers its seeds
        # through all models, and TensorFlow keeps memory for every name that there ever was.
        if self.rate > 0:
            self.seed_generator = keras.random.SeedGenerator(self._first_seed, "seed_generator")
        self.built = True

    def call(self, inputs, training=False):
        check_tensor(self, inputs)
        if len(inputs.shape) == 0:
            raise ValueError("`DropPath` takes a batch, (batch, ...). Received: inputs of shape ()")
        if not training or self.rate == 0:
            return inputs
        inputs = as_floats(self, inputs)
        noise_shape = (ops.shape(inputs)[0],) + (1,) * (len(inputs.shape) - 1)
        return keras.random.dropout(
            inputs, self.rate, noise_shape=noise_shape, seed=self.seed_generator
        )

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "rate": self.rate, "seed": self.seed}
