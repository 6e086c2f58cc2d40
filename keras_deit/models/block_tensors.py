"""A classifier's outputs together with what chosen blocks compute, in one pass."""

import keras
from keras import ops

from keras_deit.layers import kernels
from keras_deit.layers.scored_attention import ScoredAttention

ATTENTION, QUERY_KEY_VALUE, TOKENS = "attention", "query_key_value", "tokens"


def with_block_tensors(classifier, wanted):
    """Builds a model of the outputs and of tensors inside the blocks.

    Args:
        classifier: `DeiTImageClassifier` that merges no tokens. Its layers are shared.
        wanted: list of (index of a block, what of it): `ATTENTION` scores, `QUERY_KEY_VALUE`, or
            the `TOKENS` after the block.

    Returns:
        Keras model from images to `{"mean": outputs, "blocks": [[tensor, ...], ...]}`, with a list
        of tensors for each of `wanted`. Two heads add their logits, `"class"` and
        `"distillation"`.
    """
    backbone = classifier.backbone
    rotation = backbone._rotation
    (tokens,), tensors = backbone._states[0], {}
    for index, block in enumerate(backbone.blocks):
        if (index, QUERY_KEY_VALUE) in wanted:
            tensors[index, QUERY_KEY_VALUE] = QueryKeyValue(block)(tokens, **rotation)
        if (index, ATTENTION) in wanted:
            tokens, scores = ScoredAttention(block)(tokens, **rotation)
            tensors[index, ATTENTION] = [scores]
        else:
            tokens = block(tokens, **rotation)
        tensors[index, TOKENS] = [tokens]
    if classifier.pooling == "token":
        tokens = tokens[:, : backbone._num_class_tokens]
    of_heads = classifier.token_logits if classifier.use_distillation_head else {}
    head = keras.Model(classifier._features, {**of_heads, "mean": classifier.output})
    outputs = head(backbone._normalized(tokens))
    blocks = [list(tensors[key]) for key in wanted]
    return keras.Model(classifier.input, {**outputs, "blocks": blocks})


class QueryKeyValue(keras.layers.Layer):
    """The queries, keys and values of a block's attention, each (batch, tokens, hidden_dim).

    The block computes them once more itself; a compiler computes them once. Heads are side by
    side, as in the block.
    """

    def __init__(self, block, **kwargs):
        super().__init__(name=f"{block.name}_query_key_value", dtype=block.dtype_policy, **kwargs)
        self.block = block

    def call(self, inputs, rotation=None):
        normalized = kernels.layer_norm(self.block.attention_norm, inputs)
        heads = self.block.attention.heads(normalized, rotation=rotation)
        return [ops.reshape(x, (-1, x.shape[1], inputs.shape[-1])) for x in heads]


def common_tokens(backbone, other):
    """The slices of a backbone's tokens that another one has, too: (start, stop), ....

    Register tokens mean something else in each model.
    """
    slices, start = [], 0
    for count, is_shared in (
        (backbone.use_class_token, other.use_class_token),
        (backbone.use_distillation_token, other.use_distillation_token),
        (backbone.num_register_tokens, False),
        (backbone.grid_size[0] * backbone.grid_size[1], True),
    ):
        if count and is_shared:
            if slices and slices[-1][1] == start:
                slices[-1] = (slices[-1][0], start + count)
            else:
                slices.append((start, start + count))
        start += count
    return slices


def keep_tokens(tensor, slices, axis):
    """The tokens of the slices along an axis."""
    parts = [tensor[(slice(None),) * axis + (slice(*part),)] for part in slices]
    return parts[0] if len(parts) == 1 else ops.concatenate(parts, axis=axis)
