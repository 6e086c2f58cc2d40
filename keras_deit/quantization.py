"""Prepares models for 8-bit weights and activations."""

import functools
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_deit.layers.attention_pooling import AttentionPooling
from keras_deit.layers.composite import CompositeLayer
from keras_deit.layers.kernels import target_platform
from keras_deit.layers.mlp import MLP
from keras_deit.layers.multi_head_self_attention import MultiHeadSelfAttention
from keras_deit.layers.transformer_block import TransformerBlock
from keras_deit.models.deit_image_classifier import DeiTImageClassifier

__all__ = ["smooth"]

STRENGTH = 0.5  # SmoothQuant's
BATCH_SIZE = 16


def smooth(model: keras.Model, images: Any) -> None:
    """Rescales the channels inside a model, so that int8 changes its outputs less.

    Where a dense layer reads channels of very different size, most of the 8 bits are spent on the
    largest. `smooth` divides each channel `x` by a scale and multiplies the row `w` of the layer's
    kernel by it:

    `scale = sqrt(max(abs(x)) / max(abs(w)))`

    The model computes the same, up to rounding, and in the same time. The division changes the
    weights of the layer that computes `x`: the LayerNormalization before an attention, an MLP or a
    head, the values of an attention, or the linear half of a gated MLP.

    Call it before `model.quantize`, or before an export to a runtime that quantizes. Only weights
    change, so the model saves, loads and exports as before.

    Args:
        model: a built `keras.Model` with layers of this package, such as a `DeiTImageClassifier`.
            Nothing else may read the outputs of the layers above, as in a block of your own.
        images: array (batch, ...), as in a call of the model: for a classifier with a preprocessor,
            `classifier.preprocessor(images)`. 32 images of those that the model is for are enough.
            They need no labels.

    Raises:
        ValueError: if the model has no layer to smooth, or one that is quantized or has LoRA
            weights; if there are no images; or if a value inside the model is not finite.

    Example:

    >>> classifier = DeiTImageClassifier.from_preset("deit_nano_distilled_patch4_32_digits")
    >>> keras_deit.quantization.smooth(classifier, keras.random.normal((32, 32, 32, 1)))
    >>> classifier.quantize("int8", filters=lambda layer: isinstance(layer, keras.layers.Dense))
    >>> classifier.backbone.blocks[0].attention.qkv.kernel.shape
    (64, 192)

    Reference: [Xiao et al., 2023](https://arxiv.org/abs/2211.10438) (SmoothQuant), equation 4.
    """
    built = [layer for layer in _layers(model) if layer.built]
    places = [place for layer in built for place in _places(layer)]
    _check(model, places, images)
    largest = _largest_inputs([layer for place in places for layer in place.readers], model, images)
    # All are found before the first weight changes.
    scales = [place.scale([largest[id(layer)] for layer in place.readers]) for place in places]
    for place, scale in zip(places, scales):
        place.rescale(scale)


class _Place(NamedTuple):
    """Channels that can be rescaled.

    Args:
        writers: (variable, first channel) of the weights that the channels are proportional to.
        readers: the dense layers that read the channels, and nothing else does.
        dense_layers: those whose weights change.
    """

    writers: list
    readers: list
    dense_layers: list

    def scale(self, largest):
        """The scale of each channel.

        Args:
            largest: for each reader, the largest |value| of each channel.
        """
        largest = np.max(largest, axis=0)
        rows = np.max([np.abs(_array(layer.kernel)).max(axis=1) for layer in self.readers], axis=0)
        used = (largest > 0) & (rows > 0)  # nothing passes through the others
        logarithm = np.zeros(len(rows), "float32")
        logarithm[used] = STRENGTH * np.log(largest[used]) - (1 - STRENGTH) * np.log(rows[used])
        # Quantization does not depend on a common factor. Without one, weights keep their size.
        logarithm -= logarithm.sum() / max(used.sum(), 1)
        return np.exp(np.where(used, logarithm, 0.0))

    def rescale(self, scale):
        for variable, first in self.writers:
            values = _array(variable)
            values[..., first : first + len(scale)] /= scale
            variable.assign(values)
        for layer in self.readers:
            layer.kernel.assign(_array(layer.kernel) * scale[:, None])


def _after_norm(norm, *readers):
    return _Place([(norm.gamma, 0), (norm.beta, 0)], readers, readers)


def _after_dense(dense, reader):
    """The last channels of a dense layer, which another one reads."""
    first = dense.units - reader.kernel.shape[0]
    writers = [dense.kernel] if dense.bias is None else [dense.kernel, dense.bias]
    return _Place([(variable, first) for variable in writers], [reader], [dense, reader])


def _places(layer):
    if isinstance(layer, TransformerBlock):
        yield _after_norm(layer.attention_norm, layer.attention.qkv)
        yield _after_norm(layer.mlp_norm, layer.mlp.intermediate)
    elif isinstance(layer, MultiHeadSelfAttention):
        # The scores mix the tokens of a channel of the values, but no channels.
        yield _after_dense(layer.qkv, layer.projection)
    elif isinstance(layer, MLP) and layer.use_gate:
        yield _after_dense(layer.intermediate, layer.projection)
    elif isinstance(layer, AttentionPooling):
        yield _after_dense(layer.key_value, layer.projection)
        yield _after_norm(layer.norm, layer.mlp.intermediate)
    elif isinstance(layer, DeiTImageClassifier) and layer.head_norm is not None:
        heads = layer.head.sublayers if layer.use_distillation_head else [layer.head]
        yield _after_norm(layer.head_norm, *heads)


def _layers(layer, found=None):
    """A model, its layers and those inside of them, each once."""
    found = {} if found is None else found
    if id(layer) not in found:
        found[id(layer)] = layer
        inner = ()
        if isinstance(layer, keras.Model):
            inner = layer.layers
        elif isinstance(layer, CompositeLayer):
            inner = layer.sublayers
        elif isinstance(layer, keras.layers.Wrapper):
            inner = (layer.layer,)
        for each in inner:
            _layers(each, found)
    return list(found.values())


def _check(model, places, images):
    if not places:
        raise ValueError(
            "`model` must contain a `TransformerBlock`, `MultiHeadSelfAttention`, gated `MLP` or "
            "`AttentionPooling`, and be built: directly, or inside a functional model. Received: "
            f"model={model!r}"
        )
    shape = getattr(images, "shape", None)
    if not shape or not shape[0]:
        raise ValueError(
            "`images` must be an array (batch, ...) with at least one image, as a call of the "
            "model takes it. Received: images "
            f"of {f'type {type(images).__name__}' if shape is None else f'shape {tuple(shape)}'}"
        )
    if getattr(model, "preprocessor", None) is not None and "int" in str(images.dtype):
        raise ValueError(
            "`images` must be converted: use `smooth(model, model.preprocessor(images))`. "
            f"Received: images of dtype {keras.backend.standardize_dtype(images.dtype)}"
        )
    for layer in (layer for place in places for layer in place.dense_layers):
        if layer.quantization_mode is not None:
            raise ValueError(
                "Smooth a model before it is quantized: the weights that were rounded do not "
                f"come back. Received: {layer.path} in {layer.quantization_mode}"
            )
        if layer.lora_enabled:
            raise ValueError(
                "LoRA weights cannot be smoothed. Save the model and load it again, which merges "
                f"them. Received: {layer.path} with LoRA"
            )


def _largest_inputs(layers, model, images):
    """{id of a layer: the largest |value| of each channel that it reads}."""
    largest = {id(layer): np.zeros(layer.kernel.shape[0], "float32") for layer in layers}
    try:
        for layer in layers:
            layer.call = _recording(layer.call, largest[id(layer)])
        # Elsewhere, attention reads the kernel of its first layer without calling it.
        with target_platform("cpu"):
            for start in range(0, len(images), BATCH_SIZE):
                model(images[start : start + BATCH_SIZE], training=False)
    finally:
        for layer in layers:
            layer.__dict__.pop("call", None)
    if not all(np.isfinite(values).all() for values in largest.values()):
        raise ValueError(
            "Inside the model, values are NaN or infinite. Check the images and the weights."
        )
    return largest


def _recording(call, largest):
    @functools.wraps(call)
    def recording(inputs, *args, **kwargs):
        values = np.abs(_array(inputs)).reshape(-1, len(largest))
        np.maximum(largest, values.max(axis=0), out=largest)
        return call(inputs, *args, **kwargs)

    return recording


def _array(tensor):
    return ops.convert_to_numpy(tensor).astype("float32")
