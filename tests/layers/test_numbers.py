"""Each layer against the NumPy float64 witness, and what must not depend on how it is computed."""

import contextlib

import keras
import numpy as np
import pytest

from keras_deit import layers
from tests import witness
from tests.helpers import numpy, randomize

pytestmark = pytest.mark.backend

TOLERANCE = 1e-5


def tokens(rng, batch=3, length=5, dim=8):
    return rng.normal(size=(batch, length, dim)).astype("float32")


def built(layer, x, rng):
    layer(x)
    return randomize(layer, rng)


@pytest.mark.parametrize("patch_size", [2, (3, 2), (2, 4)])
@pytest.mark.parametrize("channels", [1, 3, 10])
def test_patch_embedding(patch_size, channels, rng):
    x = rng.normal(size=(2, 6, 8, channels)).astype("float32")
    layer = built(layers.PatchEmbedding(5, patch_size), x, rng)
    expected = witness.patch_embedding(
        x.astype("float64"), witness.weights_of(layer), layer.patch_size
    )
    np.testing.assert_allclose(numpy(layer(x)), expected, atol=TOLERANCE)


def test_patch_embedding_channels_first_is_channels_last_transposed(rng):
    x = rng.normal(size=(2, 6, 8, 3)).astype("float32")
    last = built(layers.PatchEmbedding(5, (3, 2), data_format="channels_last"), x, rng)
    first = layers.PatchEmbedding(5, (3, 2), data_format="channels_first")
    first.build((None, 3, 6, 8))
    first.set_weights(last.get_weights())
    np.testing.assert_array_equal(numpy(first(x.transpose(0, 3, 1, 2))), numpy(last(x)))


@pytest.mark.parametrize("platform", [None, "gpu"])  # they compute the patches differently
def test_a_feature_map_is_the_tokens_in_rows_and_columns(platform, rng):
    x = rng.normal(size=(2, 6, 8, 3)).astype("float32")
    tokens = built(layers.PatchEmbedding(5, (3, 2)), x, rng)
    grid = layers.PatchEmbedding(5, (3, 2), flatten=False)
    grid.build(x.shape)
    grid.set_weights(tokens.get_weights())
    with layers.target_platform(platform) if platform else contextlib.nullcontext():
        np.testing.assert_array_equal(numpy(grid(x)).reshape(2, 8, 5), numpy(tokens(x)))


@pytest.mark.parametrize("size", [(5, 7), (1, 2), (6, 8)])
@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_images_are_padded_at_the_bottom_and_the_right(size, data_format, rng):
    x = rng.normal(size=(2, *size, 3)).astype("float32")
    layer = layers.PatchEmbedding(5, (3, 2), data_format=data_format, pad_images=True)
    given = x.transpose(0, 3, 1, 2) if data_format == "channels_first" else x
    built(layer, given, rng)
    padded = np.pad(x.astype("float64"), ((0, 0), (0, -size[0] % 3), (0, -size[1] % 2), (0, 0)))
    expected = witness.patch_embedding(padded, witness.weights_of(layer), (3, 2))
    np.testing.assert_allclose(numpy(layer(given)), expected, atol=TOLERANCE)


@pytest.mark.parametrize("position_scope", ["all", "patches"])
@pytest.mark.parametrize("num_prefix_tokens", [1, 2])
def test_token_position_embedding(num_prefix_tokens, position_scope, rng):
    x = tokens(rng, length=6)
    layer = built(layers.TokenPositionEmbedding(num_prefix_tokens, (2, 3), position_scope), x, rng)
    expected = witness.token_position_embedding(
        x.astype("float64"), witness.weights_of(layer), position_scope
    )
    np.testing.assert_allclose(numpy(layer(x)), expected, atol=TOLERANCE)


GRIDS = [(4, 5), (1, 2), (3, 1), (2, 3)]  # larger, smaller, of another aspect ratio, its own


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("position_scope", ["all", "patches"])
def test_a_feature_map_of_any_size(position_scope, grid, rng):
    x = rng.normal(size=(2, *grid, 8)).astype("float32")
    layer = built(layers.TokenPositionEmbedding(2, (2, 3), position_scope), x, rng)
    weights = witness.weights_of(layer)
    prefix = 2 if position_scope == "all" else 0
    patches = witness.resize_bicubic(weights["positions"][prefix:].reshape(2, 3, 8), grid)
    weights["positions"] = np.concatenate([weights["positions"][:prefix], patches.reshape(-1, 8)])
    expected = witness.token_position_embedding(
        x.astype("float64").reshape(2, -1, 8), weights, position_scope
    )
    np.testing.assert_allclose(numpy(layer(x)), expected, atol=TOLERANCE)


def test_rows_and_columns_that_only_the_data_know(rng):
    """One model for all sizes: the first must leave nothing behind."""
    inputs = keras.Input((None, None, 8))
    layer = layers.TokenPositionEmbedding(1, (2, 3))
    outputs = layer(inputs)
    assert outputs.shape == (None, None, 8)
    model = randomize(keras.Model(inputs, outputs), rng)
    for grid in GRIDS:
        x = rng.normal(size=(2, *grid, 8)).astype("float32")
        np.testing.assert_allclose(model.predict(x, verbose=0), numpy(layer(x)), atol=TOLERANCE)


def test_positions_are_resampled_before_they_are_rounded(rng):
    """Rounding them first would double the error."""
    full = layers.TokenPositionEmbedding(0, (14, 14))
    half = layers.TokenPositionEmbedding(0, (14, 14), dtype="mixed_bfloat16")
    x = np.zeros((1, 20, 20, 8), "float32")
    built(full, x, rng)
    half.build(x.shape)
    half.set_weights(full.get_weights())
    rounded = numpy(keras.ops.cast(full(x), "bfloat16")).astype("float32")
    found = numpy(half(x)).astype("float32")
    # All but those that lie between two numbers of bfloat16
    assert (found == rounded).mean() > 0.999


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("num_heads", [1, 2, 4])
def test_attention_and_its_scores(num_heads, use_bias, rng):
    x = tokens(rng)
    layer = built(layers.MultiHeadSelfAttention(num_heads, use_bias=use_bias), x, rng)
    outputs, scores = witness.attention(x.astype("float64"), witness.weights_of(layer), num_heads)
    np.testing.assert_allclose(numpy(layer(x)), outputs, atol=TOLERANCE)
    with_scores = layer(x, return_attention_scores=True)
    np.testing.assert_allclose(numpy(with_scores[0]), outputs, atol=TOLERANCE)
    np.testing.assert_allclose(numpy(with_scores[1]), scores, atol=TOLERANCE)
    assert numpy(with_scores[1]).shape == (3, num_heads, 5, 5)
    np.testing.assert_allclose(numpy(with_scores[1]).sum(axis=-1), 1.0, atol=TOLERANCE)


@pytest.mark.parametrize("num_queries", [None, 2])
@pytest.mark.parametrize("use_qk_norm", [True, False])
def test_attention_with_rotation_and_norms(use_qk_norm, num_queries, rng):
    x = tokens(rng, length=2 + 2 * 3, dim=16)
    attention = layers.MultiHeadSelfAttention(2, use_qk_norm=use_qk_norm, layer_norm_epsilon=1e-3)
    layer = built(attention, x, rng)
    rotation = layers.RotaryPositionEmbedding(8, num_prefix_tokens=2)(np.zeros((1, 2, 3, 1)))
    outputs, scores = witness.attention(
        x.astype("float64"),
        witness.weights_of(layer),
        2,
        epsilon=1e-3,
        angles=witness.rotary_angles(2, 3, 8, num_prefix_tokens=2, base=100.0),
    )
    options = {"rotation": rotation, "num_queries": num_queries}
    np.testing.assert_allclose(numpy(layer(x, **options)), outputs[:, :num_queries], atol=TOLERANCE)
    found = layer(x, return_attention_scores=True, **options)
    np.testing.assert_allclose(numpy(found[0]), outputs[:, :num_queries], atol=TOLERANCE)
    np.testing.assert_allclose(numpy(found[1]), scores[:, :, :num_queries], atol=TOLERANCE)


def test_rotary_position_embedding():
    layer = layers.RotaryPositionEmbedding(12, num_prefix_tokens=3, base=7.0)
    cosines, sines = numpy(layer(np.zeros((2, 4, 5, 1), "float32")))
    angles = witness.rotary_angles(4, 5, 12, num_prefix_tokens=3, base=7.0)
    np.testing.assert_allclose(cosines, np.cos(angles), atol=TOLERANCE)
    np.testing.assert_allclose(sines, np.sin(angles), atol=TOLERANCE)


def test_attention_dropout_leaves_the_returned_scores_whole(rng):
    """The scores are those of the softmax: dropout acts on what they weigh, as in
    keras.layers.MultiHeadAttention.
    """
    x = tokens(rng)
    layer = built(layers.MultiHeadSelfAttention(2, attention_dropout_rate=0.9), x, rng)
    outputs, scores = layer(x, training=True, return_attention_scores=True)
    np.testing.assert_allclose(numpy(scores).sum(axis=-1), 1.0, atol=TOLERANCE)
    assert not np.allclose(numpy(outputs), numpy(layer(x)))


def test_mlp(rng):
    x = tokens(rng)
    layer = built(layers.MLP(12), x, rng)
    np.testing.assert_allclose(
        numpy(layer(x)), witness.mlp(x.astype("float64"), witness.weights_of(layer)), atol=TOLERANCE
    )


def test_mlp_with_a_gate(rng):
    x = tokens(rng)
    layer = built(layers.MLP(12, activation="silu", use_gate=True), x, rng)
    weights = witness.weights_of(layer)
    gate, hidden = np.split(witness.dense(x, witness.under(weights, "intermediate")), 2, axis=-1)
    hidden = gate / (1 + np.exp(-gate)) * hidden
    np.testing.assert_allclose(
        numpy(layer(x)), witness.dense(hidden, witness.under(weights, "projection")), atol=TOLERANCE
    )


def test_gelu_is_keras_exact_gelu():
    x = np.linspace(-6, 6, 241).astype("float32")
    found = numpy(layers.gelu(keras.ops.convert_to_tensor(x)))
    np.testing.assert_allclose(found, numpy(keras.activations.gelu(x)), atol=1e-6)
    np.testing.assert_allclose(found, witness.gelu(x.astype("float64")), atol=1e-6)


def test_mlp_takes_any_activation(rng):
    x = tokens(rng)
    layer = built(layers.MLP(12, activation="relu"), x, rng)
    weights = witness.weights_of(layer)
    hidden = np.maximum(witness.dense(x, witness.under(weights, "intermediate")), 0)
    np.testing.assert_allclose(
        numpy(layer(x)), witness.dense(hidden, witness.under(weights, "projection")), atol=TOLERANCE
    )


@pytest.mark.parametrize("layer_scale_init_value", [None, 0.1])
@pytest.mark.parametrize("epsilon", [1e-6, 1e-2])
def test_block(epsilon, layer_scale_init_value, rng):
    x = tokens(rng)
    layer = layers.TransformerBlock(
        4,
        12,
        layer_scale_init_value=layer_scale_init_value,
        layer_norm_epsilon=epsilon,
        name="block",
    )
    built(layer, x, rng)
    outputs, scores = witness.block(x.astype("float64"), witness.weights_of(layer), 4, epsilon)
    np.testing.assert_allclose(numpy(layer(x)), outputs, atol=TOLERANCE)
    with_scores = layer(x, return_attention_scores=True)
    np.testing.assert_allclose(numpy(with_scores[0]), outputs, atol=TOLERANCE)
    np.testing.assert_allclose(numpy(with_scores[1]), scores, atol=TOLERANCE)


def test_distillation_head_reads_each_token_with_its_own_head(rng):
    x = tokens(rng)
    layer = built(layers.DistillationHead(3), x, rng)
    weights = witness.weights_of(layer)
    class_logits, distillation_logits = layer(x)
    np.testing.assert_allclose(
        numpy(class_logits),
        witness.dense(x[:, 0], witness.under(weights, "class_head")),
        atol=TOLERANCE,
    )
    np.testing.assert_allclose(
        numpy(distillation_logits),
        witness.dense(x[:, 1], witness.under(weights, "distillation_head")),
        atol=TOLERANCE,
    )


def test_drop_path_by_its_value_set():
    """One decision for a sample: all of it is 0 or x / (1 - rate), and the kept fraction is within
    4 sigma.
    """
    rate, batch = 0.3, 4000
    x = np.ones((batch, 2, 3), "float32")
    y = numpy(layers.DropPath(rate, seed=3)(x, training=True))
    kept = y[:, 0, 0] != 0
    np.testing.assert_allclose(y, np.where(kept[:, None, None], x / (1 - rate), 0.0), rtol=1e-6)
    assert abs(kept.mean() - (1 - rate)) < 4 * np.sqrt(rate * (1 - rate) / batch)


@pytest.mark.parametrize("shape", [(32,), (32, 3), (32, 2, 3, 4)])
def test_drop_path_takes_any_rank(shape):
    y = numpy(layers.DropPath(0.5, seed=3)(np.ones(shape, "float32"), training=True)).reshape(
        32, -1
    )
    assert set(np.unique(y)) == {0.0, 2.0}
    assert (y == y[:, :1]).all()


def test_drop_path_repeats_its_masks_with_its_seed():
    x = np.ones((64, 2), "float32")
    first, second = layers.DropPath(0.5, seed=9), layers.DropPath(0.5, seed=9)
    for _ in range(2):
        np.testing.assert_array_equal(
            numpy(first(x, training=True)), numpy(second(x, training=True))
        )


def test_initialization_is_that_of_deit():
    """Truncated normal of 0.02 (0.88 of it after truncation at two sigma) for kernels, tokens,
    positions; zero biases.
    """
    block = layers.TransformerBlock(8, 256)
    block.build((None, 10, 64))
    embedding = layers.TokenPositionEmbedding(2, (40, 50))
    embedding.build((None, 2000, 64))
    patches = layers.PatchEmbedding(64, 16)
    patches.build((None, 32, 32, 3))
    for layer in (block, embedding, patches):
        for variable in layer.weights:
            values, name = numpy(variable), variable.path.rsplit("/", 1)[-1]
            if name in ("bias", "beta"):
                assert (values == 0).all(), variable.path
            elif name == "gamma":
                assert (values == 1).all(), variable.path
            else:
                # Keras' PyTorch backend lets one value in some thousands past two sigma.
                assert (abs(values) > 0.04).mean() < 2e-3, variable.path
                assert values.std() == pytest.approx(0.02 * 0.88, rel=0.15), variable.path
    kernels = [numpy(v) for v in block.weights if v.shape == (64, 256)]
    assert len(kernels) == 1
    assert not np.array_equal(
        numpy(patches.weights[0])[:64], numpy(block.attention.projection.kernel)
    )


@pytest.mark.parametrize("return_attention_scores", [True, False])
def test_num_queries_are_the_first_tokens_of_all(return_attention_scores, rng):
    """The others are looked at and do not go on: the first tokens' numbers are the same."""
    x = rng.normal(size=(3, 5, 8)).astype("float32")
    for layer in (
        layers.MultiHeadSelfAttention(2),
        layers.TransformerBlock(2, 12, layer_scale_init_value=0.5),
    ):
        layer.build(x.shape)
        randomize(layer, rng)
        found = layer(x, num_queries=2, return_attention_scores=return_attention_scores)
        expected = layer(x, return_attention_scores=return_attention_scores)
        if return_attention_scores:
            np.testing.assert_allclose(numpy(found[1]), numpy(expected[1])[:, :, :2], atol=1e-6)
            found, expected = found[0], expected[0]
        np.testing.assert_allclose(numpy(found), numpy(expected)[:, :2], atol=1e-5)
        assert layer(keras.Input((5, 8)), num_queries=2).shape == (None, 2, 8)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_attention_in_half_precision_is_the_same_in_training(dtype, rng):
    attention = built(layers.MultiHeadSelfAttention(2, dtype=dtype), tokens(rng), rng)
    trained, predicted = (
        attention(tokens(np.random.default_rng(1)), training=training) for training in (True, False)
    )
    np.testing.assert_allclose(
        numpy(trained).astype("float32"), numpy(predicted).astype("float32"), atol=2e-2
    )
