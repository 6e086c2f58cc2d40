"""One block of the residual stream."""

import keras

from keras_deit.layers.arguments import (
    check_non_negative_int,
    check_positive_int,
    check_positive_number,
    check_rate,
    check_token_sequence,
)
from keras_deit.layers.composite import CompositeLayer
from keras_deit.layers.drop_path import DropPath
from keras_deit.layers.layer_scale import LayerScale
from keras_deit.layers.mlp import MLP
from keras_deit.layers.multi_head_self_attention import MultiHeadSelfAttention
from keras_deit.layers.rematerialization import rematerialized
from keras_deit.layers.token_merging import TokenMerging


@keras.saving.register_keras_serializable(package="keras_deit")
class TransformerBlock(CompositeLayer):
    """A pre-norm transformer block: attention and MLP, each on a residual branch.

    `x = x + drop_path(scale(attention(norm(x))))`, then `x = x + drop_path(scale(mlp(norm(x))))`.

    Args:
        num_heads: int. Must divide the width of the tokens.
        intermediate_dim: int. Width inside the MLP.
        dropout_rate: float in [0, 1). Dropout inside the MLP and after the attention, in training. Defaults to 0.0.
        attention_dropout_rate: float in [0, 1). Dropout on the attention scores, in training. Defaults to 0.0.
        drop_path_rate: float in [0, 1). Probability that a sample skips a branch, in training. Defaults to 0.0.
        layer_scale_init_value: float above 0, or `None` for no LayerScale. DeiT III has 1e-4. Defaults to `None`.
        layer_norm_epsilon: float above 0. Defaults to 1e-6, that of every DeiT.
        num_merged_tokens: int, 0 or more. How many tokens `TokenMerging` takes away between attention and MLP. Defaults to 0: none.
        num_prefix_tokens: int, 0 or more. Tokens at the start that are never merged. Defaults to 1.
        remat: bool. Whether training keeps only the block's input, and computes the rest again for the gradient: less memory, more time,
            the same numbers. Defaults to `False`.

    Call arguments:
        inputs: tokens.
        training: bool. Whether dropout and drop path are active.
        return_attention_scores: bool. Whether to return `(outputs, scores)` in place of `outputs`. Defaults to `False`.
        num_queries: int. Only the first tokens go on; the others are there to be looked at. A last block whose patch tokens nobody
            reads saves most of its work so, and merges nothing. Defaults to `None`: all do.
        token_sizes: how many tokens each stands for, from a block before that merges. Defaults to `None`: one each.

    Input shape:
        inputs: (batch, tokens, hidden_dim). token_sizes: (batch, tokens).

    Output shape:
        outputs: (batch, num_queries, hidden_dim). scores: (batch, num_heads, num_queries, tokens), after the softmax. Without
        `num_queries` that is `tokens`. With `num_merged_tokens`, `token_sizes` come last, (batch, tokens - num_merged_tokens), and
        outputs are as many.

    Raises:
        ValueError: an argument out of range, or `num_heads` that does not divide the width.

    Example:

    >>> tokens = keras.random.uniform((2, 6, 64))
    >>> TransformerBlock(num_heads=4, intermediate_dim=256)(tokens).shape
    (2, 6, 64)

    Reference: [Dosovitskiy et al., 2021](https://arxiv.org/abs/2010.11929), equations 2 and 3.
    """

    def __init__(
        self,
        num_heads,
        intermediate_dim,
        dropout_rate=0.0,
        attention_dropout_rate=0.0,
        drop_path_rate=0.0,
        layer_scale_init_value=None,
        layer_norm_epsilon=1e-6,
        num_merged_tokens=0,
        num_prefix_tokens=1,
        remat=False,
        **kwargs,
    ):
        num_heads = check_positive_int("num_heads", num_heads)
        intermediate_dim = check_positive_int("intermediate_dim", intermediate_dim)
        dropout_rate = check_rate("dropout_rate", dropout_rate)
        attention_dropout_rate = check_rate("attention_dropout_rate", attention_dropout_rate)
        drop_path_rate = check_rate("drop_path_rate", drop_path_rate)
        layer_norm_epsilon = check_positive_number("layer_norm_epsilon", layer_norm_epsilon)
        num_merged_tokens = check_non_negative_int("num_merged_tokens", num_merged_tokens)
        num_prefix_tokens = check_non_negative_int("num_prefix_tokens", num_prefix_tokens)
        if layer_scale_init_value is not None:
            layer_scale_init_value = check_positive_number("layer_scale_init_value", layer_scale_init_value)
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.intermediate_dim = intermediate_dim
        self.dropout_rate = dropout_rate
        self.attention_dropout_rate = attention_dropout_rate
        self.drop_path_rate = drop_path_rate
        self.layer_scale_init_value = layer_scale_init_value
        self.layer_norm_epsilon = layer_norm_epsilon
        self.num_merged_tokens = num_merged_tokens
        self.num_prefix_tokens = num_prefix_tokens
        self.remat = bool(remat)

        self.attention_norm = keras.layers.LayerNormalization(
            epsilon=layer_norm_epsilon, dtype=self.dtype_of("attention_norm"), name="attention_norm"
        )
        self.attention = MultiHeadSelfAttention(
            num_heads,
            dropout_rate=dropout_rate,
            attention_dropout_rate=attention_dropout_rate,
            dtype=self.dtype_of("attention"),
            name="attention",
        )
        self.attention_drop_path = DropPath(
            drop_path_rate, dtype=self.dtype_of("attention_drop_path"), name="attention_drop_path"
        )
        self.mlp_norm = keras.layers.LayerNormalization(
            epsilon=layer_norm_epsilon, dtype=self.dtype_of("mlp_norm"), name="mlp_norm"
        )
        self.mlp = MLP(intermediate_dim, dropout_rate=dropout_rate, dtype=self.dtype_of("mlp"), name="mlp")
        self.mlp_drop_path = DropPath(drop_path_rate, dtype=self.dtype_of("mlp_drop_path"), name="mlp_drop_path")
        self.attention_scale = self.mlp_scale = None
        if layer_scale_init_value is not None:
            self.attention_scale = LayerScale(
                layer_scale_init_value, dtype=self.dtype_of("attention_scale"), name="attention_scale"
            )
            self.mlp_scale = LayerScale(layer_scale_init_value, dtype=self.dtype_of("mlp_scale"), name="mlp_scale")
        self.token_merging = None
        if num_merged_tokens:
            self.token_merging = TokenMerging(
                num_merged_tokens, num_prefix_tokens, dtype=self.dtype_of("token_merging"), name="token_merging"
            )

    def build(self, input_shape):
        check_token_sequence("TransformerBlock", input_shape)
        for sublayer in (
            self.attention_norm,
            self.attention,
            self.attention_scale,
            self.attention_drop_path,
            self.mlp_norm,
            self.mlp,
            self.mlp_scale,
            self.mlp_drop_path,
            self.token_merging,
        ):
            if sublayer is not None:
                sublayer.build(input_shape)
        self.built = True

    def call(self, inputs, training=None, return_attention_scores=False, num_queries=None, token_sizes=None):
        def compute(inputs, token_sizes=None):
            return self._compute(inputs, training, return_attention_scores, num_queries, token_sizes)

        tensors = (inputs,) if token_sizes is None else (inputs, token_sizes)
        return rematerialized(self, compute, *tensors) if self.remat and training else compute(*tensors)

    def _compute(self, inputs, training, return_attention_scores, num_queries, token_sizes):
        merges = self._merges(num_queries)
        branch = self.attention(
            self.attention_norm(inputs),
            training=training,
            return_attention_scores=return_attention_scores,
            num_queries=num_queries,
            token_sizes=token_sizes,
            return_keys=merges,
        )
        branch, *others = branch if return_attention_scores or merges else (branch,)
        if self.attention_scale is not None:
            branch = self.attention_scale(branch)
        x = inputs if num_queries is None else inputs[:, :num_queries]
        x = x + self.attention_drop_path(branch, training=training)
        if merges:
            x, others[-1] = self.token_merging(x, others[-1], token_sizes=token_sizes)
        branch = self.mlp(self.mlp_norm(x), training=training)
        if self.mlp_scale is not None:
            branch = self.mlp_scale(branch)
        x = x + self.mlp_drop_path(branch, training=training)
        return (x, *others) if others else x

    def _merges(self, num_queries):
        """Tokens that do not go on need not be merged."""
        return self.token_merging is not None and num_queries is None

    def compute_output_shape(self, input_shape, return_attention_scores=False, num_queries=None):
        shapes = self.attention.compute_output_shape(input_shape, return_attention_scores, num_queries)
        if not self._merges(num_queries):
            return shapes
        outputs_shape, sizes_shape = self.token_merging.compute_output_shape(input_shape)
        return (outputs_shape, shapes[1], sizes_shape) if return_attention_scores else (outputs_shape, sizes_shape)

    def compute_output_spec(self, inputs, training=None, return_attention_scores=False, num_queries=None, token_sizes=None):
        shapes = self.compute_output_shape(inputs.shape, return_attention_scores, num_queries)
        if return_attention_scores or self._merges(num_queries):
            return tuple(keras.KerasTensor(shape, dtype=self.compute_dtype) for shape in shapes)
        return keras.KerasTensor(shapes, dtype=self.compute_dtype)

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
            "num_merged_tokens": self.num_merged_tokens,
            "num_prefix_tokens": self.num_prefix_tokens,
            "remat": self.remat,
        }
