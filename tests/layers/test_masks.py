"""Padding masks: Keras' own attention on the same weights is the witness."""

import keras
import numpy as np
import pytest

from keras_deit import layers
from keras_deit.visualization import attention_model
from tests.helpers import numpy, randomize, same_arrays

pytestmark = pytest.mark.backend

MASK = np.array([[1, 1, 1, 1, 1], [1, 0, 1, 1, 0], [0, 0, 0, 1, 0]], "bool")
HEADS, TOKENS, DIM = 2, 5, 8


@pytest.fixture
def tokens(rng):
    return rng.normal(size=(3, TOKENS, DIM)).astype("float32")


def attention(rng, **kwargs):
    layer = layers.MultiHeadSelfAttention(HEADS, **kwargs)
    layer.build((None, TOKENS, DIM))
    return randomize(layer, rng)


def keras_attention(layer):
    """Keras' layer with the weights of ours."""
    twin = keras.layers.MultiHeadAttention(HEADS, DIM // HEADS)
    twin.build((None, TOKENS, DIM), (None, TOKENS, DIM))
    kernel, bias, out_kernel, out_bias = (numpy(weight) for weight in layer.weights)
    weights = [out_kernel.reshape(HEADS, -1, DIM), out_bias]
    parts = zip(np.split(kernel, 3, axis=-1), np.split(bias, 3))
    for part, part_bias in reversed(list(parts)):
        weights = [part.reshape(DIM, HEADS, -1), part_bias.reshape(HEADS, -1), *weights]
    query, key, value, *out = [weights[i : i + 2] for i in range(0, 8, 2)]
    by_name = {"query": query, "key": key, "value": value, "attention_output": out[0]}
    for variable in twin.weights:
        _, name, kind = variable.path.rsplit("/", 2)
        variable.assign(by_name[name][kind == "bias"])
    return twin


@pytest.mark.parametrize("num_queries", [None, 2])
def test_attention_is_that_of_keras(num_queries, tokens, rng):
    layer = attention(rng)
    expected, expected_scores = keras_attention(layer)(
        tokens, tokens, attention_mask=MASK[:, None], return_attention_scores=True
    )
    outputs = layer(tokens, mask=MASK, num_queries=num_queries)
    again, scores = layer(tokens, mask=MASK, num_queries=num_queries, return_attention_scores=True)
    np.testing.assert_allclose(numpy(outputs), numpy(expected)[:, :num_queries], atol=1e-5)
    np.testing.assert_allclose(numpy(again), numpy(expected)[:, :num_queries], atol=1e-5)
    np.testing.assert_allclose(numpy(scores), numpy(expected_scores)[:, :, :num_queries], atol=1e-5)


def test_a_mask_that_comes_with_the_inputs(tokens, rng):
    """The mask used to be destroyed, and the padding attended to."""
    layer = attention(rng)
    padded = tokens * MASK[..., None]
    inputs = keras.Input((TOKENS, DIM))
    model = keras.Model(inputs, layer(keras.layers.Masking()(inputs)))
    expected = keras_attention(layer)(padded, padded, attention_mask=MASK[:, None])
    outputs = model.predict(padded, verbose=0)
    np.testing.assert_allclose(outputs, numpy(expected), atol=1e-5)
    same_arrays(layer(keras.layers.Masking()(padded)), layer(padded, mask=MASK))


def test_keras_masks_agree_on_all_that_is_no_padding(tokens, rng):
    """Keras' own attention also hides keys from the padding, whose outputs mean nothing."""
    layer = attention(rng)
    masked = keras.layers.Masking()(tokens * MASK[..., None])
    outputs = layer(masked)
    expected = keras_attention(layer)(masked, masked)  # takes the mask off its inputs
    np.testing.assert_allclose(numpy(outputs)[MASK], numpy(expected)[MASK], atol=1e-5)


@pytest.mark.parametrize("remat", [False, True])
def test_training_with_dropout_does_not_look_at_padding(remat, tokens):
    other = np.where(MASK[..., None], tokens, 7.0).astype("float32")
    outputs = []
    for x in (tokens, other):
        keras.utils.set_random_seed(1)
        block = layers.TransformerBlock(
            HEADS, 12, 0.3, attention_dropout_rate=0.5, drop_path_rate=0.3, remat=remat
        )
        block.build((None, TOKENS, DIM))
        randomize(block, np.random.default_rng(2))
        outputs.append(numpy(block(x, mask=MASK, training=True))[MASK])
    np.testing.assert_allclose(*outputs, atol=1e-6)
    assert not np.allclose(outputs[0], numpy(block(tokens, training=False))[MASK], atol=1e-3)


def test_gradients_with_a_mask_are_the_same_with_remat(tokens):
    trained = []
    for remat in (False, True):
        inputs = keras.Input((TOKENS, DIM))
        block = layers.TransformerBlock(HEADS, 12, remat=remat)
        x = block(keras.layers.Masking()(inputs))
        model = keras.Model(inputs, keras.layers.GlobalAveragePooling1D()(x))
        randomize(model, np.random.default_rng(2))
        model.compile(keras.optimizers.SGD(1.0), "mse")
        model.train_on_batch(tokens * MASK[..., None], np.ones((3, DIM), "float32"))
        trained.append([numpy(weight) for weight in model.weights])
    for weight, other in zip(*trained):
        np.testing.assert_allclose(weight, other, atol=1e-5)


def test_dropout_on_masked_scores_keeps_them_zero(tokens, rng):
    layer = attention(rng, attention_dropout_rate=0.5)
    outputs, scores = layer(tokens, mask=MASK, training=True, return_attention_scores=True)
    assert (numpy(scores).transpose(0, 3, 1, 2)[~MASK] == 0).all()
    assert np.isfinite(numpy(outputs)).all()


@pytest.mark.parametrize("policy", ["float16", "bfloat16", "mixed_float16"])
def test_half_precision(policy, tokens, rng):
    layer = attention(rng)
    half = layers.MultiHeadSelfAttention(HEADS, dtype=policy)
    half.build((None, TOKENS, DIM))
    half.set_weights([numpy(weight) for weight in layer.weights])
    np.testing.assert_allclose(
        numpy(half(tokens, mask=MASK)).astype("float32"),
        numpy(layer(tokens, mask=MASK)),
        atol=0.05,
    )
    nothing = numpy(half(tokens, mask=np.zeros_like(MASK))).astype("float32")
    assert np.isfinite(nothing).all()


def test_sizes_of_tokens_and_a_mask_together(tokens, rng):
    """Two equal tokens are one of size two; what is padded counts nothing."""
    layer = attention(rng)
    twice = np.concatenate([tokens[:, :3], tokens[:, 2:3], tokens[:, :1]], axis=1)
    mask = np.array([[1, 1, 1, 1, 0]] * 3, "bool")
    sizes = np.array([[1, 1, 2, 9]] * 3, "float32")
    short = np.concatenate([tokens[:, :3], tokens[:, :1]], axis=1)
    merged = layer.attend(*layer.heads(short), token_sizes=sizes, mask=mask[:, 1:])
    np.testing.assert_allclose(
        numpy(merged)[:, :3], numpy(layer(twice, mask=mask))[:, :3], atol=1e-5
    )


def pooled(layer, masked, **kwargs):
    """The mean over the tokens that the mask of the outputs does not hide."""
    return numpy(keras.layers.GlobalAveragePooling1D()(layer(masked, **kwargs)))


@pytest.mark.parametrize(
    "layer",
    [
        layers.MLP(12),
        layers.LayerScale(0.5),
        layers.DropPath(0.5),
        layers.MultiHeadSelfAttention(HEADS),
        layers.TransformerBlock(HEADS, 12, layer_scale_init_value=0.5),
        layers.TokenPositionEmbedding(0, (1, TOKENS)),
    ],
)
def test_the_mask_goes_with_the_outputs(layer, tokens):
    assert layer.supports_masking
    masked = keras.layers.Masking()(tokens * MASK[..., None])
    outputs = numpy(layer(masked))
    expected = [row[keep].mean(axis=0) for row, keep in zip(outputs, MASK)]
    np.testing.assert_allclose(pooled(layer, masked), expected, atol=1e-6)


@pytest.mark.parametrize("cls", ["attention", "block"])
def test_the_mask_of_some_outputs(cls, tokens, rng):
    layer = layers.TransformerBlock(HEADS, 12) if cls == "block" else attention(rng)
    masked = keras.layers.Masking()(tokens * MASK[..., None])
    first = numpy(layer(masked, num_queries=4))
    expected = [row[keep].mean(axis=0) for row, keep in zip(first, MASK[:, :4])]
    np.testing.assert_allclose(pooled(layer, masked, num_queries=4), expected, atol=1e-6)
    assert pooled(layer, masked).shape == (3, DIM)  # the next call is about all tokens again
    inputs = keras.Input((TOKENS, DIM))
    outputs = layer(keras.layers.Masking()(inputs), num_queries=4)
    model = keras.Model(inputs, keras.layers.GlobalAveragePooling1D()(outputs))
    np.testing.assert_allclose(
        model.predict(tokens * MASK[..., None], verbose=0), expected, atol=1e-5
    )


@pytest.mark.parametrize("scope", ["all", "patches"])
def test_prefix_tokens_are_no_padding(scope, tokens):
    layer = layers.TokenPositionEmbedding(2, (1, TOKENS), position_scope=scope)
    masked = keras.layers.Masking()(tokens * MASK[..., None])
    outputs = numpy(layer(masked))
    mask = np.concatenate([np.ones((3, 2), "bool"), MASK], axis=1)
    np.testing.assert_array_equal(numpy(layer.compute_mask(tokens, MASK)), mask)
    expected = [row[keep].mean(axis=0) for row, keep in zip(outputs, mask)]
    np.testing.assert_allclose(pooled(layer, masked), expected, atol=1e-6)
    assert layer.compute_mask(tokens) is None


def text_model():
    words = keras.Input((TOKENS,), dtype="int32")
    x = keras.layers.Embedding(10, DIM, mask_zero=True)(words)
    x = layers.TokenPositionEmbedding(2, (1, TOKENS))(x)
    for index in range(2):
        x = layers.TransformerBlock(HEADS, 12, name=f"block_{index}")(x)
    return keras.Model(words, layers.DistillationHead(3)(x))


def test_a_model_of_padded_sequences(tmp_path, rng):
    model = text_model()
    randomize(model, rng)
    x = np.array([[4, 5, 6, 0, 0]])
    outputs = model.predict(x, verbose=0)
    embedding = model.layers[1]
    table = numpy(embedding.embeddings)
    table[0] = 100.0
    embedding.embeddings.assign(table)
    for part, other in zip(outputs, model.predict(x, verbose=0)):
        np.testing.assert_allclose(part, other, atol=1e-5)
    model.save(tmp_path / "words.keras")
    same_arrays(keras.saving.load_model(tmp_path / "words.keras").predict(x, verbose=0), outputs)
    scored = attention_model(model).predict(x, verbose=0)
    for scores in scored["attention_scores"].values():
        np.testing.assert_allclose(scores[..., 5:], 0.0, atol=1e-7)
        np.testing.assert_allclose(scores.sum(axis=-1), 1.0, atol=1e-5)
    for part, other in zip(scored["outputs"], outputs):
        np.testing.assert_allclose(part, other, atol=1e-6)


def test_a_mask_as_an_input_of_the_model(tokens, rng):
    inputs, mask = keras.Input((TOKENS, DIM)), keras.Input((TOKENS,), dtype="bool")
    block = layers.TransformerBlock(HEADS, 12)
    model = keras.Model([inputs, mask], block(inputs, mask=mask))
    randomize(block, rng)
    outputs = model.predict([tokens, MASK], verbose=0)
    np.testing.assert_allclose(outputs, numpy(block(tokens, mask=MASK)), atol=1e-5)
    scored = attention_model(model).predict([tokens, MASK], verbose=0)
    (scores,) = scored["attention_scores"].values()
    assert (scores.transpose(0, 3, 1, 2)[~MASK] == 0).all()


@pytest.mark.parametrize(
    ("mask", "received"),
    [
        (MASK[:, :4], "of shape (3, 4)"),
        (MASK[:2], "of shape (2, 5)"),
        (MASK[0], "of shape (5,)"),
        (np.ones((3, TOKENS, TOKENS), "bool"), "of shape (3, 5, 5)"),
        (np.zeros((3, TOKENS), "float32"), "float32 of shape (3, 5)"),
    ],
)
@pytest.mark.parametrize("name", ["MultiHeadSelfAttention", "TransformerBlock"])
def test_what_is_no_padding_mask(name, mask, received, tokens):
    layer = (
        layers.TransformerBlock(HEADS, 12)
        if name == "TransformerBlock"
        else layers.MultiHeadSelfAttention(HEADS)
    )
    with pytest.raises(ValueError) as caught:
        layer(tokens, mask=mask)
    assert (
        f"`mask` of `{name}` must be a padding mask of shape (batch, tokens): a bool for each "
        f"token, `True` to attend to it. Received: mask={received}, input shape (3, 5, 8)"
    ) in str(caught.value)


@pytest.mark.parametrize(
    "name", ["TokenMerging", "MergingTransformerBlock", "SelectingTransformerBlock"]
)
def test_layers_that_reduce_tokens_refuse_a_mask(name, tokens):
    layer = {
        "TokenMerging": lambda: layers.TokenMerging(1),
        "MergingTransformerBlock": lambda: layers.MergingTransformerBlock(HEADS, 12, 1),
        "SelectingTransformerBlock": lambda: layers.SelectingTransformerBlock(HEADS, 12, 0.5),
    }[name]()
    assert not layer.supports_masking
    text = (
        f"`{name}` reduces the number of tokens and takes no mask. Use `TransformerBlock`, which "
        "does, or inputs without padding."
    )
    with pytest.raises(ValueError, match=text):
        layer(keras.layers.Masking()(tokens))
    with pytest.raises(ValueError, match=text):
        layer(keras.layers.Masking()(keras.Input((TOKENS, DIM))))
    with pytest.raises(ValueError, match=text):
        layer(tokens, mask=MASK)
