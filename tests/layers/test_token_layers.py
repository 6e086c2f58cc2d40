"""The layers that compute what Keras' own do, in another form."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_deit.layers import MultiHeadSelfAttention
from keras_deit.layers.token_dense import TokenDense
from keras_deit.layers.token_norm import TokenNorm
from tests.helpers import numpy

TOKENS = np.random.default_rng(0).normal(size=(2, 5, 8)).astype("float32")
PAIRS = {
    "dense": (TokenDense, keras.layers.Dense, {"units": 6, "activation": "tanh"}),
    "without a bias": (TokenDense, keras.layers.Dense, {"units": 6, "use_bias": False}),
    "norm": (TokenNorm, keras.layers.LayerNormalization, {"epsilon": 1e-6}),
}


def pair(name, **kwargs):
    """Ours and Keras' own, of the same weights."""
    ours_class, theirs_class, arguments = PAIRS[name]
    ours, theirs = (cls(**arguments, **kwargs) for cls in (ours_class, theirs_class))
    rng = np.random.default_rng(1)
    for layer in (ours, theirs):
        layer.build(TOKENS.shape)
    weights = [rng.normal(size=weight.shape) for weight in theirs.get_weights()]
    for layer in (ours, theirs):
        layer.set_weights(weights)
    return ours, theirs


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "mixed_bfloat16", "float16"])
@pytest.mark.parametrize("name", PAIRS)
def test_the_numbers_of_keras_own(name, dtype):
    ours, theirs = pair(name, dtype=dtype)
    tokens = ops.cast(TOKENS, ours.compute_dtype)
    ours, theirs = ours(tokens), theirs(tokens)
    assert keras.backend.standardize_dtype(ours.dtype) == keras.backend.standardize_dtype(theirs.dtype)
    tolerance = {"float32": 1e-5, "float16": 5e-3}.get(dtype, 4e-2)
    np.testing.assert_allclose(numpy(ops.cast(ours, "float32")), numpy(ops.cast(theirs, "float32")), tolerance, tolerance)


def test_lora():
    ours, theirs = pair("dense")
    rng = np.random.default_rng(2)
    for layer in (ours, theirs):
        layer.enable_lora(2)
    weights = [rng.normal(size=weight.shape) for weight in theirs.get_weights()]
    for layer in (ours, theirs):
        layer.set_weights(weights)
    np.testing.assert_allclose(numpy(ours(TOKENS)), numpy(theirs(TOKENS)), 1e-5, 1e-5)


def test_int8():
    ours, theirs = pair("dense")
    for layer in (ours, theirs):
        layer.quantize("int8")
    np.testing.assert_allclose(numpy(ours(TOKENS)), numpy(theirs(TOKENS)), 1e-5, 1e-5)


def test_attention_in_half_precision_is_the_same_in_training():
    attention = MultiHeadSelfAttention(2, dtype="bfloat16")
    trained, predicted = (numpy(ops.cast(attention(TOKENS, training=training), "float32")) for training in (True, False))
    np.testing.assert_allclose(trained, predicted, atol=2e-2)
