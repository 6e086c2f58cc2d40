"""Smoothing keeps what a model computes, and int8 then keeps more of it."""

import keras
import numpy as np
import pytest
from keras import layers

from keras_deit.layers import MultiHeadSelfAttention, ParallelTransformerBlock, TransformerBlock
from keras_deit.models import DeiTImageClassifier
from keras_deit.quantization import smooth
from tests.helpers import (
    images,
    numpy,
    raises,
    randomize,
    same_arrays,
    tiny_backbone,
    tiny_classifier,
    unseen_digits,
)

pytestmark = pytest.mark.backend

DIGITS = "deit_nano_distilled_patch4_32_digits"
GATED = {"use_gated_mlp": True, "activation": "silu", "use_qk_norm": True, "use_pre_norm": True}
VARIANTS = {
    "DeiT": ({}, {}, 8),
    "DeiT III": ({"layer_scale_init_value": 0.1, "position_scope": "patches"}, {}, 8),
    "modern block": ({**GATED, "position_scope": "rotary"}, {}, 10),
    "merged tokens": ({"num_merged_tokens": 2}, {}, 8),
    "attention pooling": (
        {"use_distillation_token": False, "use_final_norm": False},
        {"pooling": "map", "use_head_norm": True},
        17,
    ),
    "two heads after a norm": ({}, {"use_head_norm": True}, 12),
}


def is_dense(layer):
    return isinstance(layer, layers.Dense)


def weights(model):
    return [numpy(weight) for weight in model.weights]


# Changed weights of a block: both norms, the first kernel after each, and for the values the bias of
# `qkv` and the kernel of the projection. A gate has two more, a norm before a head three or four.
@pytest.mark.parametrize(
    "variant",
    [pytest.param(name, marks=() if name == "DeiT" else pytest.mark.slow) for name in VARIANTS],
)
def test_the_model_computes_the_same(variant, rng):
    backbone, head, changed = VARIANTS[variant]
    model = tiny_classifier({"num_layers": 1, **backbone}, **head)
    randomize(model, rng)
    x = images(rng)
    expected, before = numpy(model(x)), weights(model)
    smooth(model, images(rng, batch=17))  # more than a batch
    np.testing.assert_allclose(numpy(model(x)), expected, rtol=0, atol=1e-5 * abs(expected).max())
    different = [not np.array_equal(a, b) for a, b in zip(before, weights(model))]
    assert sum(different) == changed


def test_blocks_in_a_model_of_ones_own(rng):
    inputs = keras.Input((5, 8))
    x = ParallelTransformerBlock(num_heads=2, intermediate_dim=12)(inputs)
    x = MultiHeadSelfAttention(num_heads=4, use_bias=False)(x)
    inner = keras.Model(inputs, x)
    model = randomize(keras.Sequential([keras.Input((5, 8)), inner, layers.Dense(3)]), rng)
    tokens = rng.normal(size=(3, 5, 8)).astype("float32")
    expected, before = numpy(model(tokens)), weights(model)
    smooth(model, tokens)
    np.testing.assert_allclose(
        numpy(model(tokens)), expected, rtol=0, atol=1e-5 * abs(expected).max()
    )
    # Those of two branches, and both kernels of the attention
    assert sum(not np.array_equal(a, b) for a, b in zip(before, weights(model))) == 2 * 8 + 2


def test_scales_follow_the_formula(rng):
    """Beside NumPy, in float64, for the first norm of a block."""
    inputs = keras.Input((5, 8))
    block = TransformerBlock(num_heads=2, intermediate_dim=12)
    model = randomize(keras.Model(inputs, block(inputs)), rng)
    block.attention_norm.gamma.assign([1, 2, 0.5, 40, 1, -3, 0, 1])
    block.attention_norm.beta.assign([0, 0, 0, 0, 0, 0, 0, 1])
    tokens = rng.normal(size=(3, 5, 8)).astype("float32")
    gamma, beta = numpy(block.attention_norm.gamma), numpy(block.attention_norm.beta)
    kernel = numpy(block.attention.qkv.kernel).astype("float64")
    x = tokens.astype("float64")
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * gamma + beta
    largest = abs(x).max(axis=(0, 1))
    used = largest > 0  # the channel of the 0 stays
    scale = np.sqrt(largest[used] / abs(kernel).max(axis=1)[used])
    scale /= np.exp(np.log(scale).mean())
    smooth(model, tokens)
    found = numpy(block.attention_norm.gamma)
    np.testing.assert_allclose(found[used], gamma[used] / scale, rtol=1e-5)
    assert found[~used] == 0
    np.testing.assert_allclose(
        numpy(block.attention.qkv.kernel)[used, :16], kernel[used, :16] * scale[:, None], rtol=1e-5
    )


@pytest.fixture(scope="module")
def digits():
    return unseen_digits()[0][:64]


def with_outliers():
    """The digits model with two channels of each norm 50 times as large: it computes the same."""
    classifier = DeiTImageClassifier.from_preset(DIGITS)
    for block in classifier.backbone.blocks:
        for norm, reader in (
            (block.attention_norm, block.attention.qkv),
            (block.mlp_norm, block.mlp.intermediate),
        ):
            factors = np.ones(64, "float32")
            factors[[3, 40]] = 50
            norm.gamma.assign(norm.gamma * factors)
            norm.beta.assign(norm.beta * factors)
            reader.kernel.assign(reader.kernel / factors[:, None])
    return classifier


@pytest.mark.slow
def test_outliers_cost_no_accuracy(digits):
    """The errors of the logits were 0.15 and 0.015 of the largest."""
    errors = []
    for smoothed in (False, True):
        classifier = with_outliers()
        x = classifier.preprocessor(digits)
        expected = numpy(classifier(x))
        if smoothed:
            smooth(classifier, x[:32])
        classifier.quantize("int8", filters=is_dense)
        errors.append(abs(numpy(classifier(x)) - expected).max())
    assert errors[1] < errors[0] / 4


def test_a_smoothed_and_quantized_model_is_saved(rng, tmp_path):
    classifier = randomize(tiny_classifier({"num_layers": 1}), rng)
    x = images(rng)
    smooth(classifier, x)
    classifier.save_to_preset(tmp_path / "float")
    same_arrays(DeiTImageClassifier.from_preset(tmp_path / "float")(x), classifier(x))
    classifier.quantize("int8", filters=is_dense)
    classifier.save_to_preset(tmp_path / "int8")
    same_arrays(DeiTImageClassifier.from_preset(tmp_path / "int8")(x), classifier(x))
    classifier.save(tmp_path / "model.keras")
    same_arrays(keras.saving.load_model(tmp_path / "model.keras")(x), classifier(x))


def test_errors(rng):
    backbone = randomize(tiny_backbone(num_layers=1), rng)
    before, x = weights(backbone), images(rng)
    with raises(
        "`images` must be an array (batch, ...) with at least one image, as a call of the model "
        "takes it. Received: images of shape (0, 12, 32, 3)"
    ):
        smooth(backbone, x[:0])
    with raises(
        "`images` must be an array (batch, ...) with at least one image, as a call of the model "
        "takes it. Received: images of type list"
    ):
        smooth(backbone, [x])
    with raises("Inside the model, values are NaN or infinite. Check the images and the weights."):
        smooth(backbone, np.where(np.arange(32)[:, None] == 9, np.nan, x))
    same_arrays(weights(backbone), before)
    with raises(
        "`images` must be converted: use `smooth(model, model.preprocessor(images))`. Received: "
        "images of dtype uint8"
    ):
        smooth(tiny_classifier(), np.zeros((2, 12, 32, 3), "uint8"))
    backbone.blocks[0].mlp.intermediate.enable_lora(2)
    path = backbone.blocks[0].mlp.intermediate.path
    with raises(
        "LoRA weights cannot be smoothed. Save the model and load it again, which merges them. "
        f"Received: {path} with LoRA"
    ):
        smooth(backbone, x)
    backbone = tiny_backbone(num_layers=1)
    backbone.quantize("int8", filters=is_dense)
    path = backbone.blocks[0].attention.qkv.path
    with raises(
        "Smooth a model before it is quantized: the weights that were rounded do not come back. "
        f"Received: {path} in int8"
    ):
        smooth(backbone, x)
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2)], name="plain")
    with raises(
        "`model` must contain a `TransformerBlock`, `MultiHeadSelfAttention`, gated `MLP` or "
        "`AttentionPooling`, and be built: directly, or inside a functional model. Received: "
        f"model={model!r}"
    ):
        smooth(model, np.zeros((2, 3)))
