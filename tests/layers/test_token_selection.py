import json
import math

import keras
import numpy as np
import pytest

from keras_deit.layers import SelectingTransformerBlock, TokenSelection, target_platform
from keras_deit.models import DeiTImageClassifier
from tests import witness
from tests.gradients import measured_gradients, trained_gradients
from tests.helpers import (
    images,
    numpy,
    raises,
    randomize,
    same_arrays,
    tiny_backbone,
    tiny_classifier,
)

pytestmark = pytest.mark.backend

PREFIX = 2


def select_one_by_one(tokens, scores, kept, prefix):
    """The paper's algorithm for one image, a token at a time, in float64."""
    patches = sorted(range(prefix, len(tokens)), key=lambda place: -scores[place])
    fused = sum(scores[place] * tokens[place] for place in patches[kept:])
    return np.stack([*tokens[:prefix], *tokens[patches[:kept]], fused])


@pytest.mark.parametrize("prefix", [0, 1, 2])
@pytest.mark.parametrize("keep_rate", [0.05, 0.5, 0.7])
def test_equals_the_algorithm_of_the_paper(prefix, keep_rate, rng):
    tokens, scores = rng.normal(size=(3, 13, 8)), rng.uniform(size=(3, 13))
    outputs = numpy(
        TokenSelection(keep_rate, prefix)(tokens.astype("float32"), scores.astype("float32"))
    )
    kept = math.ceil(keep_rate * (13 - prefix))
    assert outputs.shape == (3, prefix + kept + 1, 8)
    for sample in range(3):
        expected = select_one_by_one(tokens[sample], scores[sample], kept, prefix)
        np.testing.assert_allclose(outputs[sample], expected, atol=1e-5)


def test_the_first_of_equal_scores_is_kept():
    tokens = np.arange(5, dtype="float32").reshape(1, 5, 1)
    outputs = TokenSelection(0.5)(tokens, np.full((1, 5), 0.25, "float32"))
    np.testing.assert_array_equal(numpy(outputs)[0, :, 0], [0, 1, 2, 0.25 * (3 + 4)])


def test_nothing_happens_where_all_tokens_would_be_kept(rng):
    tokens, scores = rng.normal(size=(2, 5, 8)).astype("float32"), np.ones((2, 5), "float32")
    for keep_rate, prefix in ((1.0, 1), (0.8, 1), (0.5, 4), (0.5, 7)):
        same_arrays(TokenSelection(keep_rate, prefix)(tokens, scores), tokens)


def test_gradients_are_those_of_finite_differences(rng):
    """Also those of the scores, which weight the fused token."""
    layer = TokenSelection(0.5, 1)
    # Scores so far apart that the differences do not change their order
    tokens, scores = rng.normal(size=(1, 6, 3)), rng.permutation(6)[None] / 6 + 0.1
    weights = rng.normal(size=(1 + 3 + 1, 3))
    found = trained_gradients(
        lambda *given: layer(*given) * keras.ops.array(weights, "float32"), tokens, scores
    )
    expected = measured_gradients(
        lambda tokens, scores: select_one_by_one(tokens[0], scores[0], 3, 1) * weights,
        tokens,
        scores,
    )
    for gradient, measured in zip(found, expected):
        assert abs(measured).max() > 0.02
        np.testing.assert_allclose(gradient, measured, atol=1e-5)


def test_block_equals_the_steps_of_the_paper(rng):
    block, x = SelectingTransformerBlock(2, 12, 0.5, PREFIX), rng.normal(size=(3, 9, 8))
    block.build(x.shape)
    randomize(block, rng)
    found, scores = block(x.astype("float32"), return_attention_scores=True)
    weights = witness.weights_of(block)
    branch, expected_scores = witness.attention(
        witness.layer_norm(x, witness.under(weights, "attention_norm"), 1e-6),
        witness.under(weights, "attention"),
        2,
    )
    of_class = expected_scores[:, :, 0].mean(axis=1)
    y = np.stack([select_one_by_one(*pair, 4, PREFIX) for pair in zip(x + branch, of_class)])
    y = y + witness.mlp(
        witness.layer_norm(y, witness.under(weights, "mlp_norm"), 1e-6),
        witness.under(weights, "mlp"),
    )
    np.testing.assert_allclose(numpy(found), y, atol=1e-4)
    np.testing.assert_allclose(numpy(scores), expected_scores, atol=1e-5)
    np.testing.assert_allclose(numpy(block(x.astype("float32"))), y, atol=1e-4)  # fused


@pytest.mark.parametrize("num_layers, blocks", [(12, (3, 6, 9)), (4, (1, 2, 3)), (3, (0, 1, 2))])
def test_blocks_that_select(num_layers, blocks):
    backbone = tiny_backbone(num_layers=num_layers, keep_rate=0.5)
    found = [isinstance(block, SelectingTransformerBlock) for block in backbone.blocks]
    assert np.flatnonzero(found).tolist() == list(blocks)


def test_a_backbone_that_selects(rng):
    backbone = tiny_backbone(keep_rate=0.4, use_distillation_token=True)
    x = images(rng)
    # Of 12 patches 5 and a fused one, of those 6 3 and one, of 4 2 and one
    assert backbone.output.shape == (None, 2 + 3, 8)
    assert [outputs.shape[1] for outputs in backbone.block_outputs.values()] == [8, 6, 5]
    assert [scores.shape[2] for scores in backbone.attention_scores.values()] == [14, 8, 6]
    expected = numpy(backbone(x))
    assert np.isfinite(expected).all()
    for platform in ("gpu", "tpu"):
        with target_platform(platform):
            np.testing.assert_allclose(numpy(backbone(x)), expected, atol=1e-4)
    with raises(
        "`pyramid_outputs` needs one token for each patch, so use `keep_rate=1.0`. Received: "
        "keep_rate=0.4"
    ):
        backbone.pyramid_outputs["P1"]


@pytest.mark.slow
def test_a_classifier_that_selects_trains_and_saves(rng, tmp_path):
    classifier = tiny_classifier({"keep_rate": 0.4}, preprocessor=None)
    x, y = images(rng), np.arange(4)
    classifier.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    before = [numpy(weight).copy() for weight in classifier.trainable_weights]
    assert np.isfinite(classifier.train_on_batch(x, y))
    assert all(
        (numpy(weight) != old).any() for weight, old in zip(classifier.trainable_weights, before)
    )
    expected = classifier.predict(x, verbose=0)
    classifier.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.backbone.keep_rate == 0.4
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), expected)
    scored = keras.Model(classifier.input, classifier.outputs_with_attention_scores)(x)
    np.testing.assert_allclose(numpy(scored["outputs"]), expected, atol=1e-5)
    # The weights are those of plain blocks
    classifier.save_to_preset(tmp_path / "preset")
    plain = DeiTImageClassifier.from_preset(tmp_path / "preset", keep_rate=1.0)
    same_arrays(plain.get_weights(), classifier.get_weights())
    plain.save_weights(tmp_path / "plain.weights.h5")
    again = tiny_classifier({"keep_rate": 0.4}, preprocessor=None)
    again.load_weights(tmp_path / "plain.weights.h5")
    np.testing.assert_array_equal(again.predict(x, verbose=0), expected)


def test_the_layer_keeps_what_layers_keep(rng, tmp_path):
    """It takes two tensors, so test_contract.py has no case of it."""
    layer = TokenSelection(0.3, PREFIX, dtype="mixed_bfloat16", name="mine")
    config = json.loads(json.dumps(layer.get_config()))
    twin = TokenSelection.from_config(config)
    assert twin.get_config() == layer.get_config()
    assert (twin.keep_rate, twin.num_prefix_tokens) == (0.3, PREFIX)
    tokens, scores = keras.Input((9, 8)), keras.Input((9,))
    model = keras.Model([tokens, scores], TokenSelection(0.3, PREFIX)(tokens, scores))
    assert model.output_shape == (None, 2 + 3 + 1, 8)
    x = [rng.normal(size=(2, 9, 8)).astype("float32"), rng.uniform(size=(2, 9)).astype("float32")]
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))
    assert keras.backend.standardize_dtype(layer(*x).dtype) == "bfloat16"


def test_errors():
    for value in (0, 0.0, 1.5, -0.5, float("nan"), "half", None, True):
        with raises(
            "`keep_rate` must be a number in (0, 1]; use 1.0 to keep all tokens. "
            f"Received: keep_rate={value!r}"
        ):
            TokenSelection(value)
    with raises(
        "`keep_rate` must be a number in (0, 1]; use 1.0 to keep all tokens. Received: keep_rate=2"
    ):
        tiny_backbone(keep_rate=2)
    with raises("`num_prefix_tokens` must be a positive integer. Received: num_prefix_tokens=0"):
        SelectingTransformerBlock(2, 12, 0.5, num_prefix_tokens=0)
    with raises(
        "`TokenSelection` needs a known number of tokens: use images of a fixed size. Received: "
        "input shape (None, None, 8)"
    ):
        TokenSelection(0.5)(keras.Input((None, 8)), keras.Input((None,)))
    with raises(
        "`scores` of `TokenSelection` must have shape (batch, tokens): one number for each token. "
        "Received: scores of shape (None, 2, 5), input shape (None, 5, 8)"
    ):
        TokenSelection(0.5).compute_output_spec(keras.Input((5, 8)), keras.Input((2, 5)))
    with raises(
        "`TokenSelection` reduces the number of tokens and takes no mask. Use `TransformerBlock`, "
        "which does, or inputs without padding."
    ):
        TokenSelection(0.5).compute_output_spec(
            keras.Input((5, 8)), keras.Input((5,)), mask=keras.Input((5,))
        )


def test_arguments_that_exclude_each_other():
    with raises(
        "Tokens are either merged or selected. Use `num_merged_tokens=0` or `keep_rate=1.0`. "
        "Received: num_merged_tokens=1, keep_rate=0.5"
    ):
        tiny_backbone(num_merged_tokens=1, keep_rate=0.5)
    with raises(
        "Tokens are selected by the attention of the class token. Use `use_class_token=True` or "
        "`keep_rate=1.0`. Received: use_class_token=False, keep_rate=0.5"
    ):
        tiny_backbone(use_class_token=False, keep_rate=0.5)
    with raises(
        '`position_scope="rotary"` needs every patch in its place. Use `keep_rate=1.0`. '
        "Received: position_scope='rotary', keep_rate=0.5"
    ):
        tiny_backbone(position_scope="rotary", keep_rate=0.5)
    with raises(
        "Tokens are selected only where their number is known, and patch dropout changes it in "
        "training. Use one of the two. Received: keep_rate=0.5, patch_dropout_rate=0.5"
    ):
        tiny_backbone(keep_rate=0.5, patch_dropout_rate=0.5)
    with raises(
        "Tokens are selected only where their number is known. Use an `image_shape` without "
        "`None`, or `keep_rate=1.0`. Received: image_shape=(None, None, 3), keep_rate=0.5"
    ):
        tiny_backbone(image_shape=(None, None, 3), keep_rate=0.5, position_grid_size=(3, 4))
    with raises(
        'Selected tokens are not the patches. Use `pooling="token"`, or a backbone with '
        "`keep_rate=1.0`. Received: pooling='mean', keep_rate=0.5"
    ):
        tiny_classifier({"keep_rate": 0.5}, pooling="mean", use_distillation_head=False)
