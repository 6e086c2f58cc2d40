"""How tokens look at each other."""

import math

import keras
from keras import ops

from keras_deit.layers.arguments import check_positive_int, check_rate, check_token_sequence
from keras_deit.layers.composite import CompositeLayer
from keras_deit.layers.initialization import deit_initializer
from keras_deit.layers.token_products import apply_to_tokens

# `None` leaves the choice to Keras. On PyTorch its check of what the GPU can do breaks `torch.compile`, and PyTorch's
# `scaled_dot_product_attention` takes the flash kernel by itself.
_FLASH_ATTENTION = False if keras.backend.backend() == "torch" else None


def _has_fused_attention(query, training):
    """Whether the backend has a kernel that is faster than `_attend`.

    On a CPU, JAX has none: what stands in for it is slower, and refuses float16. The gradient of PyTorch's is slow there in half precision;
    without it, training keeps the scores.
    """
    if keras.backend.backend() == "jax":
        return not keras.distribution.list_devices()[0].startswith("cpu")
    if keras.backend.backend() == "torch":
        half = keras.backend.standardize_dtype(query.dtype) in ("bfloat16", "float16")
        return not (training and half and query.device.type == "cpu")
    return True


@keras.saving.register_keras_serializable(package="keras_deit")
class MultiHeadSelfAttention(CompositeLayer):
    """Multi-head self-attention with one fused product for query, key and value.

    `q, k, v = split(x @ qkv)`, then per head `scores = softmax(q @ k.T / sqrt(head_dim))` and
    `outputs = concat_heads(scores @ v) @ projection`, with `head_dim = hidden_dim / num_heads`.

    Unlike `keras.layers.MultiHeadAttention` it takes one sequence, keeps the width, and uses the backend's fused kernel, where that is
    faster, whenever nothing needs the scores: not when they are asked for, nor in training with `attention_dropout_rate > 0`.

    Args:
        num_heads: int. Must divide the width of the tokens.
        use_bias: bool. Whether `qkv` and `projection` have biases. Defaults to `True`.
        dropout_rate: float in [0, 1). Dropout on the outputs, in training. Defaults to 0.0.
        attention_dropout_rate: float in [0, 1). Dropout on the scores, in training. Defaults to 0.0.

    Call arguments:
        inputs: tokens.
        training: bool. Whether dropout is active.
        return_attention_scores: bool. Whether to return `(outputs, scores)` in place of `outputs`. Defaults to `False`.
        num_queries: int. Only the first tokens look at the others; there are outputs for them alone. Defaults to `None`: all do.
        token_sizes: how many tokens each stands for, as `TokenMerging` returns them: it is looked at as that many would be,
            `softmax(q @ k.T / sqrt(head_dim) + log(token_sizes))`. Defaults to `None`: one each.
        return_keys: bool. Whether to return the mean key over heads of each token as well, last. Defaults to `False`.

    Input shape:
        inputs: (batch, tokens, hidden_dim). token_sizes: (batch, tokens).

    Output shape:
        outputs: (batch, num_queries, hidden_dim). scores: (batch, num_heads, num_queries, tokens), after the softmax and before
        dropout; each row, the last axis, sums to 1. Without `num_queries` that is `tokens`. keys: (batch, tokens, head_dim).

    Raises:
        ValueError: an argument out of range, or `num_heads` that does not divide the width.

    Example:

    >>> tokens = keras.random.uniform((2, 6, 64))
    >>> outputs, scores = MultiHeadSelfAttention(num_heads=4)(tokens, return_attention_scores=True)
    >>> scores.shape
    (2, 4, 6, 6)

    Reference: [Vaswani et al., 2017](https://arxiv.org/abs/1706.03762).
    """

    def __init__(self, num_heads, use_bias=True, dropout_rate=0.0, attention_dropout_rate=0.0, **kwargs):
        num_heads = check_positive_int("num_heads", num_heads)
        dropout_rate = check_rate("dropout_rate", dropout_rate)
        attention_dropout_rate = check_rate("attention_dropout_rate", attention_dropout_rate)
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.use_bias = bool(use_bias)
        self.dropout_rate = dropout_rate
        self.attention_dropout_rate = attention_dropout_rate
        self.attention_dropout = keras.layers.Dropout(
            attention_dropout_rate, dtype=self.dtype_of("attention_dropout"), name="attention_dropout"
        )
        self.dropout = keras.layers.Dropout(dropout_rate, dtype=self.dtype_of("dropout"), name="dropout")

    def build(self, input_shape):
        check_token_sequence("MultiHeadSelfAttention", input_shape)
        hidden_dim = input_shape[-1]
        check_heads_divide(self.num_heads, hidden_dim)
        self.qkv = self._dense(3 * hidden_dim, "qkv")
        self.projection = self._dense(hidden_dim, "projection")
        self.qkv.build((None, hidden_dim))
        self.projection.build((None, hidden_dim))
        self.attention_dropout.build((input_shape[0], self.num_heads, input_shape[1], input_shape[1]))
        self.dropout.build(input_shape)
        self.built = True

    def call(self, inputs, training=None, return_attention_scores=False, num_queries=None, token_sizes=None, return_keys=False):
        _, tokens, hidden_dim = ops.shape(inputs)
        heads_shape = (-1, tokens, self.num_heads, hidden_dim // self.num_heads)
        x = apply_to_tokens(self.qkv, inputs)  # (B, T, 3 * D)
        # `split` keeps the gradient of the fused product one concatenation, where indexing makes it a padded sum.
        query, key, value = (ops.reshape(part, heads_shape) for part in ops.split(x, 3, axis=-1))  # (B, T, heads, head_dim)
        if num_queries is not None:
            query = query[:, : check_positive_int("num_queries", num_queries)]
        bias = None if token_sizes is None else ops.log(token_sizes)[:, None, None, :]  # (B, 1, 1, T)
        scores = None
        needs_scores = return_attention_scores or (training and self.attention_dropout_rate > 0)
        if needs_scores or not _has_fused_attention(query, training):
            x, scores = self._attend(query, key, value, bias, training)
        else:
            x = ops.dot_product_attention(
                query, key, value, bias=bias, flash_attention=_FLASH_ATTENTION
            )  # (B, T, heads, head_dim)
        x = apply_to_tokens(self.projection, ops.reshape(x, (-1, ops.shape(x)[1], hidden_dim)))  # (B, T, D)
        x = self.dropout(x, training=training)
        outputs = [x]
        if return_attention_scores:
            outputs.append(scores)
        if return_keys:
            outputs.append(ops.mean(key, axis=2))  # (B, T, head_dim)
        return tuple(outputs) if len(outputs) > 1 else x

    def _attend(self, query, key, value, bias, training):
        """`ops.dot_product_attention` in the open: (outputs, scores)."""
        query = ops.transpose(query, (0, 2, 1, 3))  # (B, heads, T, head_dim)
        key = ops.transpose(key, (0, 2, 3, 1))  # (B, heads, head_dim, T)
        value = ops.transpose(value, (0, 2, 1, 3))  # (B, heads, T, head_dim)
        # Scaled before the product, which would overflow in float16 first.
        logits = ops.matmul(query / math.sqrt(query.shape[-1]), key)  # (B, heads, T, T)
        # Half precision has too few digits for a sum over hundreds of tokens; PyTorch's softmax sums in float32 whatever it is given.
        if keras.backend.backend() != "torch":
            logits = ops.cast(logits, keras.backend.result_type(logits.dtype, "float32"))
        if bias is not None:
            logits = logits + ops.cast(bias, logits.dtype)
        scores = ops.cast(ops.softmax(logits, axis=-1), self.compute_dtype)
        x = ops.matmul(self.attention_dropout(scores, training=training), value)  # (B, heads, T, head_dim)
        return ops.transpose(x, (0, 2, 1, 3)), scores

    def _dense(self, units, name):
        return keras.layers.Dense(
            units, use_bias=self.use_bias, kernel_initializer=deit_initializer(), dtype=self.dtype_of(name), name=name
        )

    def compute_output_shape(self, input_shape, return_attention_scores=False, num_queries=None, return_keys=False):
        batch, tokens, hidden_dim = input_shape
        queries = tokens if num_queries is None else num_queries
        shapes = [(batch, queries, hidden_dim)]
        if return_attention_scores:
            shapes.append((batch, self.num_heads, queries, tokens))
        if return_keys:
            shapes.append((batch, tokens, hidden_dim // self.num_heads))
        return tuple(shapes) if len(shapes) > 1 else shapes[0]

    def compute_output_spec(
        self, inputs, training=None, return_attention_scores=False, num_queries=None, token_sizes=None, return_keys=False
    ):
        shapes = self.compute_output_shape(inputs.shape, return_attention_scores, num_queries, return_keys)
        if return_attention_scores or return_keys:
            return tuple(keras.KerasTensor(shape, dtype=self.compute_dtype) for shape in shapes)
        return keras.KerasTensor(shapes, dtype=self.compute_dtype)

    def get_config(self):
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "use_bias": self.use_bias,
            "dropout_rate": self.dropout_rate,
            "attention_dropout_rate": self.attention_dropout_rate,
        }


def check_heads_divide(num_heads, hidden_dim):
    if hidden_dim % num_heads:
        raise ValueError(
            f"`num_heads` must divide the width of the tokens: {hidden_dim} is not a multiple of {num_heads}. "
            f"Received: num_heads={num_heads}, hidden_dim={hidden_dim}"
        )
