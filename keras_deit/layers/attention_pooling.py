"""Pooling by attention: one learned query reads all tokens."""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_deit.arguments import (
    check_activation,
    check_positive_int,
    check_positive_number,
    check_token_sequence,
)
from keras_deit.layers import kernels
from keras_deit.layers.composite import CompositeLayer
from keras_deit.layers.initialization import deit_initializer
from keras_deit.layers.inputs import as_floats
from keras_deit.layers.masks import check_mask, padding_bias
from keras_deit.layers.mlp import MLP, activation_config
from keras_deit.layers.multi_head_self_attention import check_heads_divide


@keras.saving.register_keras_serializable(package="keras_deit")
class AttentionPooling(CompositeLayer):
    """Pools tokens into one vector: a learned query attends to all of them.

    `k, v = split(key_value(inputs))`, then for each head
    `x = softmax(query(latent) @ k.T / sqrt(head_dim)) @ v`, then
    `x = projection(concat_heads(x))` and `outputs = x + mlp(norm(x))`, with
    `head_dim = hidden_dim / num_heads`.

    It replaces the class token: a model that pools with it needs no prefix tokens. Equal to the
    pooling of SigLIP's image encoders, `AttentionPoolLatent` of timm.

    Args:
        num_heads: int. Must divide `hidden_dim`.
        intermediate_dim: int. Size of the MLP's hidden layer. SigLIP uses `4 * hidden_dim`.
        activation: name or callable, the activation of the MLP. Defaults to `"gelu"`.
        layer_norm_epsilon: float above 0. Defaults to 1e-6.

    Call arguments:
        inputs: tokens.
        training: bool. No part of the layer is random. In half precision on PyTorch's CPU, it
            selects the attention that has the faster gradient.
        mask: bool (batch, tokens), `False` for padding, which the query does not attend to.
            Defaults to the mask that comes with the inputs, such as that of
            `keras.layers.Masking`. The outputs have no mask.

    Input shape:
        (batch, tokens, hidden_dim).

    Output shape:
        (batch, hidden_dim).

    Raises:
        ValueError: if an argument is out of range, `num_heads` does not divide `hidden_dim`, or
            `mask` is not (batch, tokens).

    Example:

    >>> tokens = keras.random.uniform((2, 6, 64))
    >>> AttentionPooling(num_heads=4, intermediate_dim=256)(tokens).shape
    (2, 64)

    References:
        [Lee et al., 2019](https://arxiv.org/abs/1810.00825) (Set Transformer), section 3.2;
        [Zhai et al., 2022](https://arxiv.org/abs/2106.04560), section 3.2.
    """

    def __init__(
        self,
        num_heads: int,
        intermediate_dim: int,
        activation: str | Callable = "gelu",
        layer_norm_epsilon: float = 1e-6,
        **kwargs: Any,
    ) -> None:
        num_heads = check_positive_int("num_heads", num_heads)
        intermediate_dim = check_positive_int("intermediate_dim", intermediate_dim)
        activation = check_activation("activation", activation)
        layer_norm_epsilon = check_positive_number("layer_norm_epsilon", layer_norm_epsilon)
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.intermediate_dim = intermediate_dim
        self.layer_norm_epsilon = layer_norm_epsilon
        self.norm = keras.layers.LayerNormalization(
            epsilon=layer_norm_epsilon, **self.sublayer("norm")
        )
        self.mlp = MLP(intermediate_dim, activation, **self.sublayer("mlp"))
        self.supports_masking = True

    def build(self, input_shape):
        check_token_sequence("AttentionPooling", input_shape)
        hidden_dim = input_shape[-1]
        check_heads_divide(self.num_heads, hidden_dim)
        self.latent = self.add_weight(
            shape=(1, hidden_dim), initializer=deit_initializer(), name="latent"
        )
        self.query = self._dense(hidden_dim, "query")
        self.key_value = self._dense(2 * hidden_dim, "key_value")
        self.projection = self._dense(hidden_dim, "projection")
        for sublayer in (self.query, self.key_value, self.projection, self.norm, self.mlp):
            sublayer.build((None, hidden_dim))
        self.input_spec = keras.InputSpec(ndim=3, axes={-1: hidden_dim})
        self.built = True

    def call(self, inputs, training=None, mask=None):
        inputs = as_floats(self, inputs)
        check_token_sequence("AttentionPooling", inputs.shape)
        if mask is not None:
            check_mask("AttentionPooling", mask, inputs.shape)
        batch, _, hidden_dim = ops.shape(inputs)
        # The same query for each sample
        query = ops.broadcast_to(
            # A tensor of its own, because TensorFlow's quantized `Dense` takes no variable
            self._heads(self.query(ops.expand_dims(self.latent, 0))),
            (batch, 1, self.num_heads, hidden_dim // self.num_heads),
        )
        key, value = ops.split(kernels.dense(self.key_value, inputs), 2, axis=-1)
        x = kernels.attention(
            query,
            self._heads(key),
            self._heads(value),
            None if mask is None else padding_bias(mask, query.dtype),
            training,
        )
        x = self.projection(ops.reshape(x, (batch, hidden_dim)))
        return x + self.mlp(kernels.layer_norm(self.norm, x), training=training)

    def _heads(self, x):
        """(B, T, D) to (B, T, heads, head_dim)."""
        return ops.reshape(x, (*ops.shape(x)[:2], self.num_heads, x.shape[-1] // self.num_heads))

    def _dense(self, units, name):
        return keras.layers.Dense(
            units, kernel_initializer=deit_initializer(), **self.sublayer(name)
        )

    def compute_mask(self, inputs, previous_mask=None):
        return None  # the outputs have no tokens

    def compute_output_shape(self, input_shape):
        check_token_sequence("AttentionPooling", input_shape)
        return (input_shape[0], input_shape[-1])

    def get_config(self):
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "intermediate_dim": self.intermediate_dim,
            "activation": activation_config(self.mlp.activation),
            "layer_norm_epsilon": self.layer_norm_epsilon,
        }
