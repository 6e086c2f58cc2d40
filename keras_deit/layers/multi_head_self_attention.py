"""Self-attention."""

from typing import Any

import keras
from keras import ops

from keras_deit.arguments import (
    check_bool,
    check_positive_int,
    check_positive_number,
    check_rate,
    check_token_sequence,
)
from keras_deit.layers import kernels
from keras_deit.layers.initialization import deit_initializer
from keras_deit.layers.inputs import as_floats
from keras_deit.layers.masks import MaskedLayer, padding_bias


@keras.saving.register_keras_serializable(package="keras_deit")
class MultiHeadSelfAttention(MaskedLayer):
    """Multi-head self-attention with one fused projection for queries, keys and values.

    `q, k, v = split(qkv(inputs))`, then for each head `scores = softmax(q @ k.T / sqrt(head_dim))`
    and `outputs = projection(concat_heads(scores @ v))`, with `head_dim = hidden_dim / num_heads`.

    Unlike `keras.layers.MultiHeadAttention`, it takes one sequence and returns tokens of the same
    size. It uses the backend's fused attention where that is faster, unless the scores are needed:
    with `return_attention_scores=True`, or in training with `attention_dropout_rate > 0`.

    A call has two steps, which custom layers may call separately:
    `query, key, value = layer.heads(inputs)` and `outputs = layer.attend(query, key, value)`.

    Args:
        num_heads: int. Must divide `hidden_dim`.
        use_bias: bool. Whether `qkv` and `projection` have biases. Defaults to `True`.
        dropout_rate: float in [0, 1). Dropout on the outputs. Defaults to 0.0.
        attention_dropout_rate: float in [0, 1). Dropout on the scores. Defaults to 0.0.
        use_qk_norm: bool. Whether queries and keys each pass a LayerNormalization over `head_dim`.
            It keeps the scores of large models small in training. Defaults to `False`.
        layer_norm_epsilon: float above 0, for `use_qk_norm`. Defaults to 1e-6.

    Call arguments:
        inputs: tokens.
        training: bool. Whether dropout is active.
        return_attention_scores: bool. Whether to return `(outputs, scores)` instead of `outputs`.
            Defaults to `False`.
        num_queries: int. Computes outputs for the first `num_queries` tokens only; they still
            attend to all tokens. Defaults to `None`, which computes all outputs.
        mask: bool (batch, tokens), `False` for padding, which no token attends to. Defaults to
            the mask that comes with the inputs, such as that of `keras.layers.Masking`. The
            outputs of padding itself mean nothing.
        rotation: (2, tokens, head_dim / 2), the output of `RotaryPositionEmbedding`, by which
            queries and keys are rotated. Defaults to `None`.

    Input shape:
        (batch, tokens, hidden_dim).

    Output shape:
        outputs: (batch, num_queries, hidden_dim). scores: (batch, num_heads, num_queries, tokens),
        after the softmax and before dropout, so that the last axis sums to 1. `num_queries`
        defaults to `tokens`.

    Raises:
        ValueError: if an argument is out of range, `num_heads` does not divide `hidden_dim`,
            `mask` is not (batch, tokens), or `rotation` has another shape.

    Example:

    >>> tokens = keras.random.uniform((2, 6, 64))
    >>> outputs, scores = MultiHeadSelfAttention(num_heads=4)(tokens, return_attention_scores=True)
    >>> scores.shape
    (2, 4, 6, 6)

    References:
        [Vaswani et al., 2017](https://arxiv.org/abs/1706.03762);
        [Dehghani et al., 2023](https://arxiv.org/abs/2302.05442), section 2 (`use_qk_norm`).
    """

    def __init__(
        self,
        num_heads: int,
        use_bias: bool = True,
        dropout_rate: float = 0.0,
        attention_dropout_rate: float = 0.0,
        use_qk_norm: bool = False,
        layer_norm_epsilon: float = 1e-6,
        **kwargs: Any,
    ) -> None:
        num_heads = check_positive_int("num_heads", num_heads)
        use_bias = check_bool("use_bias", use_bias)
        dropout_rate = check_rate("dropout_rate", dropout_rate)
        attention_dropout_rate = check_rate("attention_dropout_rate", attention_dropout_rate)
        use_qk_norm = check_bool("use_qk_norm", use_qk_norm)
        layer_norm_epsilon = check_positive_number("layer_norm_epsilon", layer_norm_epsilon)
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.use_bias = use_bias
        self.dropout_rate = dropout_rate
        self.attention_dropout_rate = attention_dropout_rate
        self.use_qk_norm = use_qk_norm
        self.layer_norm_epsilon = layer_norm_epsilon
        self.query_norm = self.key_norm = None
        if use_qk_norm:
            self.query_norm = self._norm("query_norm")
            self.key_norm = self._norm("key_norm")
        self.attention_dropout = keras.layers.Dropout(
            attention_dropout_rate, **self.sublayer("attention_dropout")
        )
        self.dropout = keras.layers.Dropout(dropout_rate, **self.sublayer("dropout"))

    def build(self, input_shape):
        check_token_sequence("MultiHeadSelfAttention", input_shape)
        hidden_dim = input_shape[-1]
        check_heads_divide(self.num_heads, hidden_dim)
        self.qkv = self._dense(3 * hidden_dim, "qkv")
        self.projection = self._dense(hidden_dim, "projection")
        self.qkv.build((None, hidden_dim))
        self.projection.build((None, hidden_dim))
        if self.use_qk_norm:
            head_shape = (None, None, self.num_heads, hidden_dim // self.num_heads)
            self.query_norm.build(head_shape)
            self.key_norm.build(head_shape)
        self.attention_dropout.build(
            (input_shape[0], self.num_heads, input_shape[1], input_shape[1])
        )
        self.dropout.build(input_shape)
        self.input_spec = keras.InputSpec(ndim=3, axes={-1: hidden_dim})
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
        check_token_sequence("MultiHeadSelfAttention", inputs.shape)
        self._check_call(inputs.shape, return_attention_scores, num_queries, mask)
        check_rotation(rotation, inputs.shape, self.num_heads)
        if mask is not None or self._needs_scores(training, return_attention_scores):
            heads = self.heads(inputs, num_queries=num_queries, rotation=rotation)
            return self.attend(
                *heads,
                training=training,
                return_attention_scores=return_attention_scores,
                mask=mask,
            )
        x = kernels.self_attention(
            lambda tokens: self.heads(tokens, num_queries=num_queries, rotation=rotation),
            inputs,
            self.num_heads,
            num_queries,
            training,
        )
        return self._project(x, training)

    def heads(
        self, inputs: Any, num_queries: int | None = None, rotation: Any = None
    ) -> tuple[Any, Any, Any]:
        """Returns the unscaled queries, keys and values of each head, normalised and rotated.

        Args:
            inputs: tokens (batch, tokens, hidden_dim).
            num_queries: int. Computes queries for the first `num_queries` tokens only. Defaults to
                `None`, which means all.
            rotation: as in a call of the layer.

        Returns:
            query (batch, num_queries, num_heads, head_dim); key and value (batch, tokens,
            num_heads, head_dim).
        """
        _check_num_queries(num_queries, inputs.shape[1])
        norms = (self.query_norm, self.key_norm) if self.use_qk_norm else ()
        query, key, value = kernels.query_key_value(
            self.qkv, inputs, self.num_heads, num_queries, norms
        )
        if rotation is not None:
            of_queries = rotation if num_queries is None else rotation[:, :num_queries]
            query, key = kernels.rotate(query, of_queries), kernels.rotate(key, rotation)
        return query, key, value

    def attend(
        self,
        query: Any,
        key: Any,
        value: Any,
        token_sizes: Any = None,
        training: bool | None = None,
        return_attention_scores: bool = False,
        mask: Any = None,
    ) -> Any:
        """Returns the layer's outputs from the results of `heads`.

        Args:
            query, key, value: results of `heads`.
            token_sizes: (batch, tokens). Number of patches that each token stands for, as
                `TokenMerging` returns it. A token of size n gets the attention of n equal tokens:
                `softmax(q @ k.T / sqrt(head_dim) + log(token_sizes))`. Defaults to `None`, which
                means 1 each.
            training, return_attention_scores, mask: as in a call of the layer.

        Returns:
            `outputs`, or `(outputs, scores)`.
        """
        # (B, 1, 1, T)
        bias = None if token_sizes is None else ops.log(token_sizes)[:, None, None, :]
        if mask is not None:
            padding = padding_bias(mask, query.dtype)
            bias = padding if bias is None else bias + padding
        scores = None
        if self._needs_scores(training, return_attention_scores):
            x, scores = kernels.attention_and_scores(
                query,
                key,
                value,
                bias,
                lambda scores: self.attention_dropout(scores, training=training),
            )
        else:
            x = kernels.attention(query, key, value, bias, training)
        _, queries, heads, head_dim = ops.shape(x)
        x = self._project(ops.reshape(x, (-1, queries, heads * head_dim)), training)
        return (x, scores) if return_attention_scores else x

    def _needs_scores(self, training, return_attention_scores):
        return return_attention_scores or (training and self.attention_dropout_rate > 0)

    def _project(self, x, training):
        return self.dropout(kernels.dense(self.projection, x), training=training)

    def _dense(self, units, name):
        return keras.layers.Dense(
            units,
            use_bias=self.use_bias,
            kernel_initializer=deit_initializer(),
            **self.sublayer(name),
        )

    def _norm(self, name):
        return keras.layers.LayerNormalization(
            epsilon=self.layer_norm_epsilon, **self.sublayer(name)
        )

    def compute_output_shape(self, input_shape, return_attention_scores=False, num_queries=None):
        check_token_sequence("MultiHeadSelfAttention", input_shape)
        batch, tokens, hidden_dim = input_shape
        _check_num_queries(num_queries, tokens)
        queries = tokens if num_queries is None else num_queries
        outputs_shape = (batch, queries, hidden_dim)
        return (
            (outputs_shape, (batch, self.num_heads, queries, tokens))
            if return_attention_scores
            else outputs_shape
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
            "use_bias": self.use_bias,
            "dropout_rate": self.dropout_rate,
            "attention_dropout_rate": self.attention_dropout_rate,
            "use_qk_norm": self.use_qk_norm,
            "layer_norm_epsilon": self.layer_norm_epsilon,
        }


def check_heads_divide(num_heads, hidden_dim):
    if hidden_dim % num_heads:
        raise ValueError(
            f"`num_heads` must divide `hidden_dim`: {hidden_dim} is not a multiple of {num_heads}. "
            f"Received: num_heads={num_heads}, hidden_dim={hidden_dim}"
        )


def check_rotation(rotation, input_shape, num_heads):
    if rotation is None:
        return
    _, tokens, hidden_dim = input_shape
    expected = (2, tokens, hidden_dim // num_heads // 2)
    shape = tuple(getattr(rotation, "shape", ()))
    # Sizes may be unknown, or expressions of PyTorch's exporter and JAX.
    fits = len(shape) == 3 and not any(
        isinstance(size, int) and isinstance(wanted, int) and size != wanted
        for size, wanted in zip(shape, expected)
    )
    if not fits:
        received = f"of shape {shape}" if hasattr(rotation, "shape") else repr(rotation)
        raise ValueError(
            "`rotation` must have shape (2, tokens, head_dim / 2), here "
            f"{expected}: use the output of `RotaryPositionEmbedding({2 * expected[2]}, "
            "num_prefix_tokens)` for the same image. "
            f"Received: rotation={received}, input shape {tuple(input_shape)}"
        )


def _check_num_queries(num_queries, tokens):
    if num_queries is None:
        return
    check_positive_int("num_queries", num_queries)
    if isinstance(tokens, int) and num_queries > tokens:
        raise ValueError(
            f"`num_queries` must be at most the number of tokens, {tokens}. Received: "
            f"num_queries={num_queries}"
        )


def output_specs(layer, shapes):
    """Symbolic outputs of a layer for a shape or a tuple of shapes.

    Raises:
        ValueError: if a model could not be built from them, because the layer was first called with
            fewer outputs.
    """
    outputs = keras.tree.map_shape_structure(
        lambda shape: keras.KerasTensor(shape, dtype=layer.compute_dtype), shapes
    )
    first_call = getattr(layer, "output", None)
    if first_call is not None and len(keras.tree.flatten(first_call)) < len(
        keras.tree.flatten(outputs)
    ):
        raise ValueError(
            f"Layer {layer.name!r} was first called without `return_attention_scores=True`, and "
            "Keras 3.15 refuses a model through a later call with more outputs. For an existing "
            "model, use `keras_deit.visualization.attention_model(model)`. For a new one, use "
            "`return_attention_scores=True` in the first call of the layer. See "
            "docs/troubleshooting.md."
        )
    return outputs
