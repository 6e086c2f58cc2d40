"""The transformer block."""

from collections.abc import Callable
from typing import Any

import keras

from keras_deit.arguments import (
    check_activation,
    check_bool,
    check_positive_int,
    check_positive_number,
    check_rate,
    check_token_sequence,
)
from keras_deit.layers import kernels
from keras_deit.layers.drop_path import DropPath
from keras_deit.layers.inputs import as_floats
from keras_deit.layers.layer_scale import LayerScale
from keras_deit.layers.masks import MaskedLayer
from keras_deit.layers.mlp import MLP, activation_config
from keras_deit.layers.multi_head_self_attention import (
    MultiHeadSelfAttention,
    check_heads_divide,
    check_rotation,
    output_specs,
)
from keras_deit.layers.rematerialization import rematerialized


@keras.saving.register_keras_serializable(package="keras_deit")
class TransformerBlock(MaskedLayer):
    """A pre-norm transformer block: attention and MLP, each on a residual branch.

    `x = x + drop_path(scale(attention(norm(x))))`, then `x = x + drop_path(scale(mlp(norm(x))))`.

    Args:
        num_heads: int. Must divide `hidden_dim`.
        intermediate_dim: int. Size of the MLP's hidden layer.
        dropout_rate: float in [0, 1). Dropout in the MLP and after the attention. Defaults to 0.0.
        attention_dropout_rate: float in [0, 1). Dropout on the attention scores. Defaults to 0.0.
        drop_path_rate: float in [0, 1). Probability that a sample skips a branch in training.
            Defaults to 0.0.
        layer_scale_init_value: float above 0, or `None` for no LayerScale. DeiT III uses 1e-4.
            Defaults to `None`.
        layer_norm_epsilon: float above 0. Defaults to 1e-6.
        remat: bool. Whether to use gradient checkpointing: training keeps only the block's inputs
            and recomputes the rest in the backward pass. Less memory, more time, same results.
            Defaults to `False`.
        use_qk_norm: bool. Whether the attention normalises queries and keys
            (`MultiHeadSelfAttention`). Defaults to `False`.
        activation: name or callable, the activation of the MLP. Defaults to `"gelu"`.
        use_gated_mlp: bool. Whether the MLP has a gate (`MLP`). With `activation="silu"`, it is
            SwiGLU. Defaults to `False`.

    Call arguments:
        inputs: tokens.
        training: bool. Whether dropout and drop path are active.
        return_attention_scores: bool. Whether to return `(outputs, scores)` instead of `outputs`.
            Defaults to `False`.
        num_queries: int. Computes outputs for the first `num_queries` tokens only; they still
            attend to all tokens. This saves most of the work of a last block whose patch tokens
            are not used. Defaults to `None`, which computes all outputs.
        mask: bool (batch, tokens), `False` for padding, which no token attends to. Defaults to
            the mask that comes with the inputs, such as that of `keras.layers.Masking`, and goes
            with the outputs. The outputs of padding itself mean nothing.
        rotation: (2, tokens, head_dim / 2), the output of `RotaryPositionEmbedding`, by which
            the attention rotates queries and keys. Defaults to `None`.

    Input shape:
        (batch, tokens, hidden_dim).

    Output shape:
        outputs: (batch, num_queries, hidden_dim). scores: (batch, num_heads, num_queries, tokens),
        after the softmax. `num_queries` defaults to `tokens`.

    Raises:
        ValueError: if an argument is out of range, `num_heads` does not divide `hidden_dim`, or
            `mask` is not (batch, tokens).

    Example:

    >>> tokens = keras.random.uniform((2, 6, 64))
    >>> TransformerBlock(num_heads=4, intermediate_dim=256)(tokens).shape
    (2, 6, 64)

    Reference: [Dosovitskiy et al., 2021](https://arxiv.org/abs/2010.11929), equations 2 and 3.
    """

    def __init__(
        self,
        num_heads: int,
        intermediate_dim: int,
        dropout_rate: float = 0.0,
        attention_dropout_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        layer_scale_init_value: float | None = None,
        layer_norm_epsilon: float = 1e-6,
        remat: bool = False,
        use_qk_norm: bool = False,
        activation: str | Callable = "gelu",
        use_gated_mlp: bool = False,
        **kwargs: Any,
    ) -> None:
        num_heads = check_positive_int("num_heads", num_heads)
        intermediate_dim = check_positive_int("intermediate_dim", intermediate_dim)
        dropout_rate = check_rate("dropout_rate", dropout_rate)
        attention_dropout_rate = check_rate("attention_dropout_rate", attention_dropout_rate)
        drop_path_rate = check_rate("drop_path_rate", drop_path_rate)
        layer_norm_epsilon = check_positive_number("layer_norm_epsilon", layer_norm_epsilon)
        if layer_scale_init_value is not None:
            layer_scale_init_value = check_positive_number(
                "layer_scale_init_value", layer_scale_init_value
            )
        remat = check_bool("remat", remat)
        use_gated_mlp = check_bool("use_gated_mlp", use_gated_mlp)
        activation = check_activation("activation", activation)
        use_qk_norm = check_bool("use_qk_norm", use_qk_norm)
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.intermediate_dim = intermediate_dim
        self.dropout_rate = dropout_rate
        self.attention_dropout_rate = attention_dropout_rate
        self.drop_path_rate = drop_path_rate
        self.layer_scale_init_value = layer_scale_init_value
        self.layer_norm_epsilon = layer_norm_epsilon
        self.remat = remat
        self.use_qk_norm = use_qk_norm
        self.use_gated_mlp = use_gated_mlp

        self.attention_norm = keras.layers.LayerNormalization(
            epsilon=layer_norm_epsilon, **self.sublayer("attention_norm")
        )
        self.attention = MultiHeadSelfAttention(
            num_heads,
            dropout_rate=dropout_rate,
            attention_dropout_rate=attention_dropout_rate,
            use_qk_norm=use_qk_norm,
            layer_norm_epsilon=layer_norm_epsilon,
            **self.sublayer("attention"),
        )
        self.attention_drop_path = DropPath(drop_path_rate, **self.sublayer("attention_drop_path"))
        self.mlp_norm = keras.layers.LayerNormalization(
            epsilon=layer_norm_epsilon, **self.sublayer("mlp_norm")
        )
        self.mlp = MLP(
            intermediate_dim,
            activation,
            dropout_rate=dropout_rate,
            use_gate=use_gated_mlp,
            **self.sublayer("mlp"),
        )
        self.mlp_drop_path = DropPath(drop_path_rate, **self.sublayer("mlp_drop_path"))
        self.attention_scale = self.mlp_scale = None
        if layer_scale_init_value is not None:
            self.attention_scale = LayerScale(
                layer_scale_init_value, **self.sublayer("attention_scale")
            )
            self.mlp_scale = LayerScale(layer_scale_init_value, **self.sublayer("mlp_scale"))

    def build(self, input_shape):
        check_token_sequence("TransformerBlock", input_shape)
        # Before anything is built: a layer built in part can never be built again.
        check_heads_divide(self.num_heads, input_shape[-1])
        for sublayer in (
            self.attention_norm,
            self.attention,
            self.attention_scale,
            self.attention_drop_path,
            self.mlp_norm,
            self.mlp,
            self.mlp_scale,
            self.mlp_drop_path,
        ):
            if sublayer is not None:
                sublayer.build(input_shape)
        self.input_spec = keras.InputSpec(ndim=3, axes={-1: input_shape[-1]})
        self.built = True

    def call(
        self,
        inputs,
        training=None,
        return_attention_scores=False,
        num_queries=None,
        mask=None,
        rotation=None,
    ):
        inputs = as_floats(self, inputs)
        check_token_sequence("TransformerBlock", inputs.shape)
        self._check_call(inputs.shape, return_attention_scores, num_queries, mask)
        check_rotation(rotation, inputs.shape, self.num_heads)

        def compute(inputs):
            attended = self.attention(
                kernels.layer_norm(self.attention_norm, inputs),
                training=training,
                return_attention_scores=return_attention_scores,
                num_queries=num_queries,
                mask=mask,
                rotation=rotation,
            )
            branch, *scores = attended if return_attention_scores else (attended,)
            x = self._add_attention(
                inputs if num_queries is None else inputs[:, :num_queries], branch, training
            )
            return (self._add_mlp(x, training), *scores) if scores else self._add_mlp(x, training)

        return self._run(compute, inputs, training=training)

    def _run(self, compute, *inputs, training):
        return (
            rematerialized(self, compute, *inputs) if self.remat and training else compute(*inputs)
        )

    def _add_attention(self, x, branch, training):
        if self.attention_scale is not None:
            branch = self.attention_scale(branch)
        return x + self.attention_drop_path(branch, training=training)

    def _add_mlp(self, x, training):
        return x + self._mlp_branch(x, training)

    def _mlp_branch(self, x, training):
        branch = self.mlp(kernels.layer_norm(self.mlp_norm, x), training=training)
        if self.mlp_scale is not None:
            branch = self.mlp_scale(branch)
        return self.mlp_drop_path(branch, training=training)

    def compute_output_shape(self, input_shape, return_attention_scores=False, num_queries=None):
        check_token_sequence("TransformerBlock", input_shape)
        return self.attention.compute_output_shape(
            input_shape, return_attention_scores, num_queries
        )

    def compute_output_spec(
        self,
        inputs,
        training=None,
        return_attention_scores=False,
        num_queries=None,
        mask=None,
        rotation=None,
    ):
        self._check_call(inputs.shape, return_attention_scores, num_queries, mask)
        check_rotation(rotation, inputs.shape, self.num_heads)
        return output_specs(
            self, self.compute_output_shape(inputs.shape, return_attention_scores, num_queries)
        )

    def get_config(self):
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "intermediate_dim": self.intermediate_dim,
            "dropout_rate": self.dropout_rate,
            "attention_dropout_rate": self.attention_dropout_rate,
            "drop_path_rate": self.drop_path_rate,
            "layer_scale_init_value": self.layer_scale_init_value,
            "layer_norm_epsilon": self.layer_norm_epsilon,
            "remat": self.remat,
            "use_qk_norm": self.use_qk_norm,
            "activation": activation_config(self.mlp.activation),
            "use_gated_mlp": self.use_gated_mlp,
        }

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        # In version 0.1 this class merged tokens too.
        if cls is TransformerBlock and "num_merged_tokens" in config:
            if config["num_merged_tokens"]:
                return keras.saving.get_registered_object(
                    "keras_deit>MergingTransformerBlock"
                ).from_config(config)
            del config["num_merged_tokens"], config["num_prefix_tokens"]
        return super().from_config(config)
