"""The MLP of a transformer block."""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_deit.arguments import (
    check_activation,
    check_bool,
    check_not_zero,
    check_positive_int,
    check_rate,
    check_shape,
)
from keras_deit.layers.composite import CompositeLayer
from keras_deit.layers.initialization import deit_initializer
from keras_deit.layers.inputs import as_floats
from keras_deit.layers.kernels import dense, gelu


@keras.saving.register_keras_serializable(package="keras_deit")
class MLP(CompositeLayer):
    """Two dense layers with an activation between them, applied to each token.

    `outputs = projection(activation(intermediate(inputs)))`. With `use_gate=True`, the first layer
    is twice as wide: `gate, x = split(intermediate(inputs))`, then
    `outputs = projection(activation(gate) * x)`. `MLP(..., activation="silu", use_gate=True)` is
    SwiGLU, the MLP of the largest DINOv2 and DINOv3.

    Args:
        intermediate_dim: int. Size of the hidden layer. DeiT uses `4 * hidden_dim`.
        activation: name or callable. Defaults to `"gelu"`, the exact GELU
            (`keras_deit.layers.gelu`).
        dropout_rate: float in [0, 1). Dropout after each of the two layers. Defaults to 0.0.
        use_gate: bool. Whether an activated gate multiplies the hidden layer. Defaults to `False`.

    Input shape:
        (batch, tokens, hidden_dim).

    Output shape:
        (batch, tokens, hidden_dim).

    Raises:
        ValueError: if an argument is out of range.

    Example:

    >>> tokens = keras.random.uniform((2, 6, 64))
    >>> MLP(intermediate_dim=256)(tokens).shape
    (2, 6, 64)

    References:
        [Dosovitskiy et al., 2021](https://arxiv.org/abs/2010.11929), section 3.1;
        [Shazeer, 2020](https://arxiv.org/abs/2002.05202) (`use_gate`).
    """

    def __init__(
        self,
        intermediate_dim: int,
        activation: str | Callable = "gelu",
        dropout_rate: float = 0.0,
        use_gate: bool = False,
        **kwargs: Any,
    ) -> None:
        intermediate_dim = check_positive_int("intermediate_dim", intermediate_dim)
        activation = check_activation("activation", activation)
        dropout_rate = check_rate("dropout_rate", dropout_rate)
        use_gate = check_bool("use_gate", use_gate)
        super().__init__(**kwargs)
        self.intermediate_dim = intermediate_dim
        # The same function, in a form that runtimes for exported models have.
        self.activation = gelu if activation is keras.activations.gelu else activation
        self.dropout_rate = dropout_rate
        self.use_gate = use_gate
        self.intermediate = keras.layers.Dense(
            2 * intermediate_dim if use_gate else intermediate_dim,
            activation=None if use_gate else self.activation,
            kernel_initializer=deit_initializer(),
            **self.sublayer("intermediate"),
        )
        self.intermediate_dropout = keras.layers.Dropout(
            dropout_rate, **self.sublayer("intermediate_dropout")
        )
        self.dropout = keras.layers.Dropout(dropout_rate, **self.sublayer("dropout"))
        self.supports_masking = True

    def build(self, input_shape):
        self._check_shape(input_shape)
        hidden_dim = input_shape[-1]
        self.projection = keras.layers.Dense(
            hidden_dim, kernel_initializer=deit_initializer(), **self.sublayer("projection")
        )
        self.intermediate.build((None, hidden_dim))
        self.projection.build((None, self.intermediate_dim))
        self.intermediate_dropout.build((None, self.intermediate_dim))
        self.dropout.build(input_shape)
        self.input_spec = keras.InputSpec(min_ndim=2, axes={-1: hidden_dim})
        self.built = True

    def _check_shape(self, input_shape):
        check_shape("MLP", input_shape)
        if len(input_shape) < 2 or input_shape[-1] is None:
            raise ValueError(
                "`MLP` takes tokens of shape (batch, tokens, hidden_dim) with a known "
                f"`hidden_dim`. Received: input shape {tuple(input_shape)}"
            )
        check_not_zero("MLP", "token", input_shape)

    def call(self, inputs, training=None):
        inputs = as_floats(self, inputs)
        self._check_shape(inputs.shape)
        x = dense(self.intermediate, inputs)
        if self.use_gate:
            gate, x = ops.split(x, 2, axis=-1)
            x = self.activation(gate) * x
        # (B, T, intermediate_dim)
        x = dense(self.projection, self.intermediate_dropout(x, training=training))  # (B, T, D)
        return self.dropout(x, training=training)

    def compute_output_shape(self, input_shape):
        self._check_shape(input_shape)
        return tuple(input_shape)

    def get_config(self):
        return {
            **super().get_config(),
            "intermediate_dim": self.intermediate_dim,
            "activation": activation_config(self.activation),
            "dropout_rate": self.dropout_rate,
            "use_gate": self.use_gate,
        }


def activation_config(activation):
    """The value of `activation` in the config of a layer or model with an `MLP`."""
    return "gelu" if activation is gelu else keras.activations.serialize(activation)
