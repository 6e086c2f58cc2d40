"""Attention scores of an existing model."""

import inspect
import itertools

import keras

from keras_deit.layers.multi_head_self_attention import MultiHeadSelfAttention
from keras_deit.layers.scored_attention import ScoredAttention
from keras_deit.layers.transformer_block import TransformerBlock

ATTENTION = (TransformerBlock, MultiHeadSelfAttention, ScoredAttention)


def attention_model(model: keras.Model) -> keras.Model:
    """Returns a model that outputs the attention scores of every block, too.

    The new model shares the layers of `model`, so training one trains both. It includes the blocks
    of models inside `model`. The blocks do not have to be called with
    `return_attention_scores=True` when you create `model`.

    Args:
        model: a functional or sequential model that contains `TransformerBlock`,
            `MergingTransformerBlock` or `MultiHeadSelfAttention` layers, such as a `DeiTBackbone`,
            a `DeiTImageClassifier`, or a model that you composed.

    Returns:
        `keras.Model` with the inputs of `model`: images after the preprocessor. Its outputs are
        `{"outputs": ..., "attention_scores": {"block_0": ..., ...}}`: the outputs of `model`, and
        the scores (batch, num_heads, tokens, tokens) of each block by name. If two models
        contain blocks of the same name, the keys are paths such as `"left/block_0"`. If a block is
        called twice, the key of the second call ends in `":1"`.

    Raises:
        ValueError: if `model` is neither functional nor a built sequential model, or contains none
            of these layers.

    Example:

    >>> block = keras_deit.layers.TransformerBlock(
    ...     num_heads=4, intermediate_dim=256, name="block_0"
    ... )
    >>> inputs = keras.Input((6, 64))
    >>> x = block(inputs)
    >>> model = keras.Model(inputs, keras.layers.Dense(10)(x[:, 0]))
    >>> found = keras_deit.visualization.attention_model(model)(keras.random.uniform((2, 6, 64)))
    >>> found["attention_scores"]["block_0"].shape
    (2, 4, 6, 6)
    """
    if not _is_functional(model):
        raise ValueError(
            "`model` must be a functional model, or a sequential model that is built. If it is a "
            "subclass of `keras.Model`, pass the functional model inside it. Received: "
            f"model={model!r}"
        )
    if not _has_attention(model):
        raise ValueError(
            "`model` must contain a `TransformerBlock`, `MergingTransformerBlock` or "
            "`MultiHeadSelfAttention` layer: directly, or inside a functional model. Use these "
            f"layers of `keras_deit.layers`. Received: model={model!r}"
        )
    scored = _Attention()(model)
    scores = scored.output["attention_scores"]
    short = {path.split("/")[-1]: tensor for path, tensor in scores.items()}
    if len(short) < len(scores):
        return scored
    return keras.Model(
        scored.input, {"outputs": scored.output["outputs"], "attention_scores": short}
    )


class _Attention:
    """Creates a functional model with scores from one without. Wraps each layer only once, even if
    several models or calls share it.
    """

    def __init__(self):
        self._made = {}

    def __call__(self, model):
        """Returns a model with outputs `{"outputs": ..., "attention_scores": {path: scores}}`."""
        scores = {}

        def call(layer, *args, **kwargs):
            if isinstance(layer, ScoredAttention):
                outputs = layer(*args, **kwargs)
                found = {layer.layer.name: outputs[1]}
            elif isinstance(layer, ATTENTION):
                outputs, found = self._call_block(layer, *args, **kwargs)
                found = {layer.name: found}
            elif _is_functional(layer) and _has_attention(layer):
                inner = self._once(layer, self)(*args, **kwargs)
                outputs = inner["outputs"]
                found = {
                    f"{layer.name}/{path}": tensor
                    for path, tensor in inner["attention_scores"].items()
                }
            else:
                return layer(*args, **kwargs)
            for path, tensor in found.items():
                scores[_numbered(path, scores)] = tensor
            return outputs

        # `clone_model` compiles the clone if the model is compiled. A new model of the same graph
        # is not compiled.
        graph = keras.Model(*_ends(model))
        clone = keras.models.clone_model(
            graph, clone_function=lambda layer: layer, call_function=call
        )
        return keras.Model(clone.input, {"outputs": clone.output, "attention_scores": scores})

    def _call_block(self, block, *args, **kwargs):
        """Returns (the outputs of the block, its scores)."""
        given = inspect.signature(block.call).bind(*args, **kwargs).arguments
        returns_scores = given.pop("return_attention_scores", False)
        num_queries = given.pop("num_queries", None)
        outputs, scores, *token_sizes = self._once(block, ScoredAttention)(
            given.pop("inputs"), **given
        )
        if num_queries is not None:  # outputs for some tokens, but scores for all
            return block(*args, **kwargs), scores
        returned = (outputs, scores, *token_sizes) if returns_scores else (outputs, *token_sizes)
        return (returned if len(returned) > 1 else outputs), scores

    def _once(self, layer, make):
        if id(layer) not in self._made:
            self._made[id(layer)] = make(layer)
        return self._made[id(layer)]


def _is_functional(layer):
    """Whether a layer is a functional model, or a sequential model that is built."""
    return isinstance(layer, keras.Model) and hasattr(layer, "inputs")


def _has_attention(model):
    return any(
        isinstance(layer, ATTENTION) or (_is_functional(layer) and _has_attention(layer))
        for layer in model.layers
    )


def _ends(model):
    if isinstance(model, keras.Sequential):
        return model.inputs[0], model.outputs[0]
    return model.input, model.output


def _numbered(path, taken):
    """Returns `path`, with the number of the call if earlier calls of the block took it."""
    calls = (path if call == 0 else f"{path}:{call}" for call in itertools.count())
    return next(path for path in calls if path not in taken)
