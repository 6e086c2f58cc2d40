"""What blocks that reduce the number of tokens have in common."""

from typing import Any

from keras_deit.layers import kernels
from keras_deit.layers.inputs import as_floats
from keras_deit.layers.masks import refuse_mask
from keras_deit.layers.multi_head_self_attention import output_specs
from keras_deit.layers.token_merging import check_known_tokens
from keras_deit.layers.transformer_block import TransformerBlock


class ReducingTransformerBlock(TransformerBlock):
    """Base class of blocks that reduce the number of tokens between attention and MLP.

    A subclass creates and builds the layer that reduces, calls it in `_reduce`, and says in
    `_reduced_shape` what remains. It has the weights of a `TransformerBlock`.

    Keras 3.15 stores a layer's weights under the name of its class. A subclass takes the name of
    `TransformerBlock`, so that a model that reduces tokens loads the weights of one that does not.
    """

    def __init__(self, num_heads: int, intermediate_dim: int, **kwargs: Any) -> None:
        super().__init__(num_heads, intermediate_dim, **kwargs)
        self.supports_masking = False

    def _reduce(self, x, query, key, token_sizes):
        """The tokens that remain of `x`, and their sizes if the block returns them, as a tuple."""
        raise NotImplementedError

    def _first(self, x, token_sizes):
        """The same for `num_queries`: `x` are the first tokens, of which none is removed."""
        raise NotImplementedError

    def _reduced_shape(self, input_shape):
        raise NotImplementedError

    def build(self, input_shape):
        check_known_tokens(type(self).__qualname__, input_shape)
        super().build(input_shape)

    def _compute(self, inputs, token_sizes, training, return_attention_scores, num_queries, mask):
        """(outputs, scores if asked for, token sizes if the block returns them)."""
        inputs = as_floats(self, inputs)
        refuse_mask(self, mask)
        self._check_call(inputs.shape, return_attention_scores, num_queries, None)
        check_known_tokens(type(self).__qualname__, inputs.shape)

        def compute(inputs, token_sizes=None):
            query, key, value = self.attention.heads(
                kernels.layer_norm(self.attention_norm, inputs), num_queries=num_queries
            )
            attended = self.attention.attend(
                query,
                key,
                value,
                token_sizes,
                training=training,
                return_attention_scores=return_attention_scores,
            )
            branch, *scores = attended if return_attention_scores else (attended,)
            if num_queries is None:
                x = self._add_attention(inputs, branch, training)
                x, *token_sizes = self._reduce(x, query, key, token_sizes)
            else:
                x = self._add_attention(inputs[:, :num_queries], branch, training)
                x, *token_sizes = self._first(x, token_sizes)
            return (self._add_mlp(x, training), *scores, *token_sizes)

        return self._run(
            compute,
            *([inputs] if token_sizes is None else [inputs, token_sizes]),
            training=training,
        )

    def _shapes(self, input_shape, return_attention_scores, num_queries):
        """The shapes of (outputs, scores if asked for)."""
        check_known_tokens(type(self).__qualname__, input_shape)
        outputs_shape, scores_shape = self.attention.compute_output_shape(
            input_shape, True, num_queries
        )
        if num_queries is None:
            outputs_shape = self._reduced_shape(input_shape)
        return (outputs_shape, scores_shape) if return_attention_scores else (outputs_shape,)

    def _specs(self, inputs, return_attention_scores, num_queries, mask):
        refuse_mask(self, mask)
        self._check_call(inputs.shape, return_attention_scores, num_queries, None)
        return output_specs(
            self, self.compute_output_shape(inputs.shape, return_attention_scores, num_queries)
        )
