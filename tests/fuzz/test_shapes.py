"""Inputs of any shape: a result of the documented shape, or words with the shape in them.

The words do not depend on the backend, because they come before any computation.
"""

import functools
import re

import hypothesis
import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_deit import layers
from keras_deit.models import DeiTDistiller
from tests.conftest import BACKEND
from tests.helpers import numpy, tiny_backbone, tiny_classifier

pytestmark = pytest.mark.backend

# Each case compiles: an eighth of the cases on TensorFlow, and a fortieth on the other two.
SHARE = 8 if BACKEND == "tensorflow" else 40
FEWER = hypothesis.settings(max_examples=max(1, hypothesis.settings().max_examples // SHARE))
TOKENS, IMAGES, MAPS = (2, 5, 8), (2, 6, 8, 3), (2, 3, 4, 8)
SIZES = st.sampled_from((0, 1, 2, 3, 4, 5, 6, 7, 8))
DTYPES = ("float32", "float16", "int32", "uint8", "bool", "complex64")
# For each layer: how to make it, inputs that it takes, and the shapes of the outputs.
LAYERS = {
    "PatchEmbedding": (
        lambda: layers.PatchEmbedding(8, (2, 4), data_format="channels_last"),
        IMAGES,
        lambda s: [(s[0], s[1] // 2 * (s[2] // 4), 8)],
    ),
    "PatchEmbedding of any size": (
        lambda: layers.PatchEmbedding(
            8, (2, 4), data_format="channels_last", flatten=False, pad_images=True
        ),
        IMAGES,
        lambda s: [(s[0], -(-s[1] // 2), -(-s[2] // 4), 8)],
    ),
    "HMLPStem": (
        lambda: layers.HMLPStem(8, 8, data_format="channels_last"),
        (2, 8, 16, 3),
        lambda s: [(s[0], s[1] // 8 * (s[2] // 8), 8)],
    ),
    "TokenPositionEmbedding": (
        lambda: layers.TokenPositionEmbedding(2, (1, 5)),
        TOKENS,
        lambda s: [(s[0], 2 + (5 if len(s) == 3 else s[1] * s[2]), s[-1])],
    ),
    "TokenPositionEmbedding of any size": (
        lambda: layers.TokenPositionEmbedding(2, (1, 5)),
        (2, 3, 4, 8),
        lambda s: [(s[0], 2 + (5 if len(s) == 3 else s[1] * s[2]), s[-1])],
    ),
    "MultiHeadSelfAttention": (
        lambda: layers.MultiHeadSelfAttention(2),
        TOKENS,
        lambda s: [s],
    ),
    "AttentionPooling": (
        lambda: layers.AttentionPooling(2, 6),
        TOKENS,
        lambda s: [(s[0], s[2])],
    ),
    "MLP": (lambda: layers.MLP(6), TOKENS, lambda s: [s]),
    "LayerScale": (lambda: layers.LayerScale(), TOKENS, lambda s: [s]),
    "DropPath": (lambda: layers.DropPath(0.5), TOKENS, lambda s: [s]),
    # The number of kept tokens depends on `training`: tests/layers/test_patch_dropout.py.
    "PatchDropout": (
        lambda: layers.PatchDropout(0.5, 2),
        TOKENS,
        lambda s: [(s[0], None, s[2])],
    ),
    "RotaryPositionEmbedding": (
        lambda: layers.RotaryPositionEmbedding(8, 2),
        (2, 2, 3, 4),
        lambda s: [(2, 2 + s[1] * s[2], 4)],
    ),
    "TransformerBlock": (lambda: layers.TransformerBlock(2, 6), TOKENS, lambda s: [s]),
    "ParallelTransformerBlock": (
        lambda: layers.ParallelTransformerBlock(2, 6),
        TOKENS,
        lambda s: [s],
    ),
    "MergingTransformerBlock": (
        lambda: layers.MergingTransformerBlock(2, 6, 1),
        TOKENS,
        lambda s: [(s[0], s[1] - (s[1] > 2), s[2]), (s[0], s[1] - (s[1] > 2))],
    ),
    "SelectingTransformerBlock": (
        lambda: layers.SelectingTransformerBlock(2, 6, 0.5),
        TOKENS,
        lambda s: [(s[0], min(s[1], 2 + s[1] // 2), s[2])],
    ),
    "TokenMerging": (
        lambda: layers.TokenMerging(1),
        TOKENS,
        lambda s: [(s[0], s[1] - (s[1] > 2), s[2]), (s[0], s[1] - (s[1] > 2))],
    ),
    "DistillationHead": (
        lambda: layers.DistillationHead(3),
        TOKENS,
        lambda s: [(s[0], 3), (s[0], 3)],
    ),
    "SimpleFeaturePyramid": (
        lambda: layers.SimpleFeaturePyramid(5, ("P3", "P5"), data_format="channels_last"),
        MAPS,
        lambda s: [
            (s[0], s[1] * 2, s[2] * 2, 5),
            (s[0], (s[1] + 1) // 2, (s[2] + 1) // 2, 5),
        ],
    ),
    "DeiTImageConverter": (
        lambda: layers.DeiTImageConverter((4, 6), data_format="channels_last"),
        IMAGES,
        lambda s: [(*s[:-3], 4, 6, s[-1])],
    ),
}


# What else their texts name
OWN = {
    "PatchEmbedding": ["`PatchEmbedding`", "`patch_size`"],
    "HMLPStem": ["`HMLPStem`", "`patch_size`"],
    "TokenPositionEmbedding": ["`TokenPositionEmbedding`", "`grid_size`"],
    "DeiTImageConverter": ["`DeiTImageConverter`", "`mean` and `std`"],
}


def own(name):
    name = name.split()[0]
    return OWN.get(name, [f"`{name}`"])


def shapes(good):
    """Shapes of any rank, and good ones of which one size is any other."""

    def with_another(place, size):
        return (*good[:place], size, *good[place + 1 :])

    return st.one_of(
        st.lists(SIZES, max_size=5).map(tuple),
        st.builds(with_another, st.integers(0, len(good) - 1), SIZES),
    )


def assert_words(error, names, shape, *others):
    """The text names the layer or the argument, and what it received."""
    text = re.sub(r"\x1b\[\d+m", "", str(error)).split("\n\nArguments received")[0]
    if "must divide `hidden_dim`" in text:
        names, received = ["`num_heads`"], f"hidden_dim={shape[-1]}"
    else:
        received = "dtype complex64" if "takes real numbers" in text else str(shape)
    assert any(name in text for name in (*names, *others)), text
    assert received in text, text


def assert_shapes(found, documented):
    """`None` is any size."""
    for shape, expected in zip(found, documented, strict=True):
        for size, wanted in zip(shape, expected, strict=True):
            assert wanted in (None, size), (shape, expected)


def shapes_of(outputs):
    return [tuple(part.shape) for part in keras.tree.flatten(outputs)]


@pytest.mark.parametrize("name", LAYERS)
@FEWER
@given(data=st.data())
def test_layers(name, data):
    make, good, documented = LAYERS[name]
    shape = data.draw(shapes(good))
    dtype = data.draw(st.sampled_from(DTYPES))
    is_built, training = data.draw(st.booleans()), data.draw(st.booleans())
    layer = make()
    if is_built:
        layer(np.ones(good, "float32"))
    call = functools.partial(layer, training=training) if "training" in _arguments(layer) else layer
    try:
        outputs = call(np.ones(shape, dtype))
    except ValueError as error:
        assert_words(error, own(name), shape, f"layer '{layer.name}'")
    else:
        assert_shapes(shapes_of(outputs), documented(shape))
        for part in keras.tree.flatten(outputs):
            assert np.isfinite(numpy(part).astype("complex64")).all()


@pytest.mark.parametrize("name", LAYERS)
@FEWER
@given(data=st.data())
def test_shapes_without_values(name, data):
    """`build`, `compute_output_shape` and symbolic calls, with sizes that are not known."""
    make, good, documented = LAYERS[name]
    shape = tuple(
        size if data.draw(st.integers(0, 4)) else None for size in data.draw(shapes(good))
    )

    def computed():
        result = make().compute_output_shape(shape)
        if isinstance(result, dict):
            return [result[name] for name in sorted(result)]
        return list(result) if isinstance((*result, 0)[0], tuple) else [result]

    def called():
        return shapes_of(make()(keras.KerasTensor(shape)))

    for use in (computed, called, lambda: make().build(shape)):
        try:
            result = use()
        except ValueError as error:
            assert_words(error, own(name), shape)
        else:
            assert result is None or None in shape or result == documented(shape)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("inputs", [None, {}, {"a": np.ones(TOKENS, "float32")}, [], "abc", 3.0])
@pytest.mark.parametrize("is_built", [False, True])
def test_what_is_no_tensor(name, inputs, is_built):
    make, good, _ = LAYERS[name]
    layer = make()
    if is_built:
        layer(np.ones(good, "float32"))
    with pytest.raises(ValueError) as error:
        layer(inputs)
    assert re.search(
        f"`{name.split()[0]}` takes one tensor|should be tensors|input tensor|layer '{layer.name}'",
        str(error.value),
    )


def _arguments(layer):
    return layer.call.__code__.co_varnames


@functools.cache
def model(name):
    if name == "backbone":
        model = tiny_backbone(num_layers=1)
    elif name == "distiller":
        teacher = keras.Sequential(
            [keras.Input((12, 32, 3)), keras.layers.Flatten(), keras.layers.Dense(5)]
        )
        student = tiny_classifier({"num_layers": 1}, preprocessor=None)
        model = DeiTDistiller(student, teacher)
    else:
        raw = {} if name == "raw" else {"preprocessor": None}
        model = tiny_classifier({"num_layers": 1}, **raw)
    model.compile(
        "sgd",
        "mse"
        if name == "backbone"
        else keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


METHODS = {
    "call": lambda model, x, y: model(x),
    "predict": lambda model, x, y: model.predict(x, verbose=0),
    "predict_on_batch": lambda model, x, y: model.predict_on_batch(x),
    "fit": lambda model, x, y: model.fit(x, y, verbose=0),
    "evaluate": lambda model, x, y: model.evaluate(x, y, verbose=0),
    "train_on_batch": lambda model, x, y: model.train_on_batch(x, y),
}
GOOD = (2, 12, 32, 3)


@pytest.mark.parametrize("name", ["backbone", "bare", "raw", "distiller"])
@FEWER
@given(data=st.data())
def test_models(name, data):
    shape = data.draw(shapes(GOOD))
    method = data.draw(st.sampled_from(sorted(METHODS)))
    batch = shape[0] if shape else 1
    y = np.zeros((batch, 13, 8) if name == "backbone" else (batch,), "float32")
    x = np.full(shape, 9, "float32")
    takes_any_size = name == "raw" and method != "call"
    fits = len(shape) == 4 and shape[0] > 0 and shape[3] == 3 and 0 not in shape
    fits = fits and (takes_any_size or shape[1:3] == (12, 32))
    if fits:
        outputs = METHODS[method](model(name), x, y)
        if method.startswith("predict") or method == "call":
            assert {part[0] for part in shapes_of(outputs)} == {batch}
    else:
        with pytest.raises(ValueError) as error:
            METHODS[method](model(name), x, y)
        assert_words(error.value, ["Images must", "'images'"], shape)
    # An error inside a step would have lost the weights on JAX.
    assert np.isfinite(numpy(model(name).weights[0])).all()
