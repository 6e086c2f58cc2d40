"""A learned factor for each channel of a residual branch."""

from typing import Any

import keras

from keras_deit.arguments import check_positive_number, check_shape
from keras_deit.layers.inputs import as_floats


@keras.saving.register_keras_serializable(package="keras_deit")
class LayerScale(keras.layers.Layer):
    """Multiplies each channel by a learned factor: `outputs = inputs * gamma`.

    Args:
        init_value: float above 0. Initial value of every factor. Defaults to 1e-4, as in DeiT III.

    Input shape:
        (batch, ..., hidden_dim).

    Output shape:
        Same as the input shape.

    Raises:
        ValueError: if `init_value` is not above 0.

    Example:

    >>> LayerScale(init_value=0.5)(np.ones((1, 2, 2)))[0, 0]
    (0.5, 0.5)

    Reference: [Touvron et al., 2021](https://arxiv.org/abs/2103.17239) (CaiT), section 2.
    """

    def __init__(self, init_value: float = 1e-4, **kwargs: Any) -> None:
        init_value = check_positive_number("init_value", init_value)
        super().__init__(**kwargs)
        self.init_value = init_value
        self.supports_masking = True

    def build(self, input_shape):
        self._check_shape(input_shape)
        self.gamma = self.add_weight(
            shape=(input_shape[-1],),
            initializer=keras.initializers.Constant(self.init_value),
            name="gamma",
        )
        self.input_spec = keras.InputSpec(min_ndim=1, axes={-1: input_shape[-1]})
        self.built = True

    def _check_shape(self, input_shape):
        check_shape("LayerScale", input_shape)
        if len(input_shape) < 1 or input_shape[-1] is None:
            raise ValueError(
                "`LayerScale` takes inputs of shape (batch, ..., hidden_dim) with a known "
                f"`hidden_dim`. Received: input shape {tuple(input_shape)}"
            )

    def call(self, inputs):
        return as_floats(self, inputs) * self.gamma

    def compute_output_shape(self, input_shape):
        self._check_shape(input_shape)
        return tuple(input_shape)

    def get_config(self):
        return {**super().get_config(), "init_value": self.init_value}
