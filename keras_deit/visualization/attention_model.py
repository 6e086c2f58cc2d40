"""The attention scores of a model that was made without them."""

import inspect
import itertools
from typing import Any

import keras

from keras_deit.layers.multi_head_self_attention import MultiHeadSelfAttention
from keras_deit.layers.scored_attention import ScoredAttention
from keras_deit.layers.transformer_block import TransformerBlock

ATTENTION = (TransformerBlock, MultiHeadSelfAttention, ScoredAttention)


def attention_model(model: Any) -> Any:
    """A functional model that returns the attention scores of each block beside what `model`
    returns.

    It has the layers of `model`, not copies of them: what one learns the other knows. Models inside
    `model` are looked into, too.

    Unlike `keras.Model(model.input, scores)`, it does not ask for blocks that were called with
    `return_attention_scores=True` when `model` was made.

    Args:
        model: a functional or sequential model with `TransformerBlock`, `MergingTransformerBlock`
            or `MultiHeadSelfAttention` in it: composed of them, a `DeiTBackbone`, a
            `DeiTImageClassifier`, or a model around one. Trained or not.

    Returns:
        `keras.Model` from the inputs of `model` (converted images, not raw ones) to
        `{"outputs": what model returns, "attention_scores": {name of the block: (batch, num_heads,
        tokens, tokens), ...}}`, as `outputs_with_attention_scores` of a classifier. Blocks of one
        name in several models are named by their paths, `"left/block_0"`; the second call of one
        block ends in `":1"`.

    Raises:
        ValueError: `model` is not functional, or has no attention of this package in it.

    Example:

    >>> inputs = keras.Input((6, 64))
    >>> x = keras_deit.layers.TransformerBlock(num_heads=4, intermediate_dim=256, name="block_0")(inputs)
    >>> model = keras.Model(inputs, keras.layers.Dense(10)(x[:, 0]))
    >>> found = keras_deit.visualization.attention_model(model)(keras.random.uniform((2, 6, 64)))
    >>> found["attention_scores"]["block_0"].shape
    (2, 4, 6, 6)
    """
    if not _is_functional(model):
        raise ValueError(
            "`attention_model` looks into functional and sequential models that are built. Of a "
            "model of your own class give the "
            f"functional one inside. Received: model={model!r}"
        )
    if not _has_attention(model):
        raise ValueError(
            "The model has no `TransformerBlock`, `MergingTransformerBlock` or "
            "`MultiHeadSelfAttention` among its layers and those of "
            "the functional models inside, so there are no scores to return. Received: "
            f"model={model!r}"
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
    """Makes of a functional model one with its scores; each layer is wrapped once, however many
    models and calls it is in.
    """

    def __init__(self):
        self._made = {}

    def __call__(self, model):
        """A model that returns `{"outputs": ..., "attention_scores": {path: scores}}`."""
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

        # A plain model of the same graph: of one that is compiled, the clone would be compiled,
        # too.
        graph = keras.Model(*_ends(model))
        clone = keras.models.clone_model(
            graph, clone_function=lambda layer: layer, call_function=call
        )
        return keras.Model(clone.input, {"outputs": clone.output, "attention_scores": scores})

    def _call_block(self, block, *args, **kwargs):
        """(what the block returns, its scores)."""
        given = inspect.signature(block.call).bind(*args, **kwargs).arguments
        returns_scores = given.pop("return_attention_scores", False)
        num_queries = given.pop("num_queries", None)
        outputs, scores, *token_sizes = self._once(block, ScoredAttention)(
            given.pop("inputs"), **given
        )
        if num_queries is not None:  # the scores are of all tokens nevertheless
            return block(*args, **kwargs), scores
        returned = (outputs, scores, *token_sizes) if returns_scores else (outputs, *token_sizes)
        return (returned if len(returned) > 1 else outputs), scores

    def _once(self, layer, make):
        if id(layer) not in self._made:
            self._made[id(layer)] = make(layer)
        return self._made[id(layer)]


def _is_functional(layer):
    """Whether a layer is a functional model, or a sequential one that is built."""
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
    """`path`, or that of the first call after those which are taken."""
    calls = (path if call == 0 else f"{path}:{call}" for call in itertools.count())
    return next(path for path in calls if path not in taken)
