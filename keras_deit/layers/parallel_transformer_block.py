"""The transformer block with several branches side by side."""

import inspect
from typing import Any

import keras
from keras import ops

from keras_deit.arguments import check_positive_int, check_token_sequence
from keras_deit.layers import kernels
from keras_deit.layers.inputs import as_floats
from keras_deit.layers.multi_head_self_attention import check_rotation
from keras_deit.layers.transformer_block import TransformerBlock


@keras.saving.register_keras_serializable(package="keras_deit")
class ParallelTransformerBlock(TransformerBlock):
    """A pre-norm transformer block with several attentions and several MLPs in parallel.

    `x = x + sum(attention[i](norm[i](x)))`, then `x = x + sum(mlp[i](norm[i](x)))`, over the
    branches i. Each branch has drop path and LayerScale as in `TransformerBlock`. It has as many
    weights as `num_branches` blocks one behind the other, and fewer steps that wait for each other.

    Args:
        num_heads, intermediate_dim: see `TransformerBlock`. They count for each branch.
        num_branches: int. Number of attentions, and of MLPs. Defaults to 2.
        **kwargs: the other arguments of `TransformerBlock`.

    Call arguments:
        inputs: tokens.
        training: bool. Whether dropout and drop path are active.
        return_attention_scores: bool. Whether to return `(outputs, scores)` instead of `outputs`.
            Defaults to `False`.
        num_queries, mask, rotation: see `TransformerBlock`.

    Input shape:
        (batch, tokens, hidden_dim).

    Output shape:
        outputs: (batch, num_queries, hidden_dim). scores: (batch, num_branches * num_heads,
        num_queries, tokens), the heads of the first branch first. `num_queries` defaults to
        `tokens`.

    Raises:
        ValueError: if an argument is out of range, `num_heads` does not divide `hidden_dim`, or
            `mask` is not (batch, tokens).

    Example:

    >>> tokens = keras.random.uniform((2, 6, 64))
    >>> block = ParallelTransformerBlock(num_heads=4, intermediate_dim=256)
    >>> outputs, scores = block(tokens, return_attention_scores=True)
    >>> scores.shape
    (2, 8, 6, 6)

    Reference: [Touvron et al., 2022](https://arxiv.org/abs/2203.09795), section 3.
    """

    def __init__(
        self,
        num_heads: int,
        intermediate_dim: int,
        num_branches: int = 2,
        **kwargs: Any,
    ) -> None:
        num_branches = check_positive_int("num_branches", num_branches)
        super().__init__(num_heads, intermediate_dim, **kwargs)
        self.num_branches = num_branches
        # The first branch is the block's own. The others are blocks, whose parts this one calls.
        names = inspect.signature(TransformerBlock).parameters
        arguments = {name: value for name, value in kwargs.items() if name in names}
        for index in range(1, num_branches):
            branch = TransformerBlock(
                num_heads, intermediate_dim, **arguments, **self.sublayer(f"branch_{index}")
            )
            setattr(self, branch.name, branch)

    # Not a property: Keras 3.15 loads what all properties return, and would load the block itself
    # for ever.
    def _branches(self):
        return [self, *(getattr(self, f"branch_{i}") for i in range(1, self.num_branches))]

    def build(self, input_shape):
        check_token_sequence("ParallelTransformerBlock", input_shape)
        super().build(input_shape)
        for branch in self._branches()[1:]:
            branch.build(input_shape)

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
        check_token_sequence("ParallelTransformerBlock", inputs.shape)
        self._check_call(inputs.shape, return_attention_scores, num_queries, mask)
        check_rotation(rotation, inputs.shape, self.num_heads)

        def compute(inputs):
            x = inputs if num_queries is None else inputs[:, :num_queries]
            scores = []
            for branch in self._branches():
                attended = branch.attention(
                    kernels.layer_norm(branch.attention_norm, inputs),
                    training=training,
                    return_attention_scores=return_attention_scores,
                    num_queries=num_queries,
                    mask=mask,
                    rotation=rotation,
                )
                if return_attention_scores:
                    attended, scores_of_branch = attended
                    scores.append(scores_of_branch)
                x = branch._add_attention(x, attended, training)
            outputs = x
            for branch in self._branches():
                outputs = outputs + branch._mlp_branch(x, training)
            return (outputs, ops.concatenate(scores, axis=1)) if scores else outputs

        return self._run(compute, inputs, training=training)

    def compute_output_shape(self, input_shape, return_attention_scores=False, num_queries=None):
        check_token_sequence("ParallelTransformerBlock", input_shape)
        shapes = super().compute_output_shape(input_shape, return_attention_scores, num_queries)
        if not return_attention_scores:
            return shapes
        outputs_shape, (batch, heads, queries, tokens) = shapes
        return outputs_shape, (batch, self.num_branches * heads, queries, tokens)

    def get_config(self):
        return {**super().get_config(), "num_branches": self.num_branches}
