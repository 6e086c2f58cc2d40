import re

import keras
import numpy as np
import pytest

from keras_deit.layers import (
    MergingTransformerBlock,
    MultiHeadSelfAttention,
    PatchEmbedding,
    TokenPositionEmbedding,
    TransformerBlock,
)
from keras_deit.visualization import attention_model, attention_rollout
from tests.conftest import BACKEND
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

IMAGES = (12, 32, 3)  # 3 x 4 patches


def close(found, expected):
    found, expected = keras.tree.flatten(found), keras.tree.flatten(expected)
    assert len(found) == len(expected)
    for a, b in zip(found, expected):
        np.testing.assert_allclose(numpy(a), numpy(b), atol=1e-5)


def block(name, **kwargs):
    return TransformerBlock(2, 12, name=name, **kwargs)


def composed():
    inputs = keras.Input(IMAGES)
    x = TokenPositionEmbedding(1, (3, 4))(
        PatchEmbedding(8, (4, 8), data_format="channels_last")(inputs)
    )
    for index in range(3):
        x = block(f"block_{index}")(x)
    return keras.Model(inputs, keras.layers.Dense(5)(x[:, 0]))


def expected_scores(model, x):
    """The scores of each block, from eager calls."""
    scores = {}
    for layer in model.layers[1:]:
        if isinstance(layer, TransformerBlock):
            x, scores[layer.name] = layer(x, return_attention_scores=True)
        elif not isinstance(layer, keras.layers.Dense):
            x = layer(x)
    return scores


def test_a_composed_model_after_training(rng):
    """This used to raise "Output with path ... is not connected to `inputs`" after training."""
    model = randomize(composed(), rng)
    model.compile("sgd", "mse", jit_compile=BACKEND == "jax")
    x = images(rng)
    model.fit(x, rng.normal(size=(4, 5)), verbose=0)
    attention = attention_model(model)
    found = attention(x)
    close(found["outputs"], model(x))
    assert set(found["attention_scores"]) == {"block_0", "block_1", "block_2"}
    close(found["attention_scores"], expected_scores(model, x))
    assert found["attention_scores"]["block_1"].shape == (4, 2, 13, 13)
    assert attention_rollout(found["attention_scores"], 1, (3, 4)).shape == (4, 3, 4)
    assert not attention.compiled


def test_shares_the_weights(rng):
    model = composed()
    attention = attention_model(model)
    assert {id(weight) for weight in attention.weights} == {id(weight) for weight in model.weights}
    before = attention(images(rng))
    randomize(model, rng)
    assert not np.allclose(numpy(attention(images(rng))["outputs"]), numpy(before["outputs"]))
    model.layers[3].trainable = False
    assert len(attention.trainable_variables) == len(model.trainable_variables)


@pytest.mark.parametrize("pooling, num_merged_tokens", [("token", 0), ("mean", 0), ("token", 2)])
def test_backbone_and_classifier_are_as_their_own_attributes(pooling, num_merged_tokens, rng):
    backbone = randomize(tiny_backbone(num_merged_tokens=num_merged_tokens), rng)
    x = images(rng)
    found = attention_model(backbone)(x)
    close(found["outputs"], backbone(x))
    close(found["attention_scores"], keras.Model(backbone.input, backbone.attention_scores)(x))
    options = {"use_distillation_head": False, "pooling": pooling}
    classifier = randomize(
        tiny_classifier({"num_merged_tokens": num_merged_tokens}, **options), rng
    )
    found = attention_model(classifier)(x)
    close(found, keras.Model(classifier.input, classifier.outputs_with_attention_scores)(x))
    close(found["outputs"], classifier(x))


def test_half_precision(rng):
    backbone, x = randomize(tiny_backbone(dtype="mixed_bfloat16"), rng), images(rng)
    attention = attention_model(backbone)
    expected = keras.Model(backbone.input, backbone.attention_scores)(x)
    for name, scores in attention(x)["attention_scores"].items():
        assert (
            keras.backend.standardize_dtype(scores.dtype)
            == attention.output["attention_scores"][name].dtype
            == "bfloat16"
        )
        same_arrays(scores, expected[name])


def test_the_error_of_keras_comes_early_and_names_the_way_out():
    """Keras says "Output with path ... is not connected to `inputs`", and not before a model is
    made.
    """
    message = (
        "The first call of layer 'mine' in this graph has no attention scores, and Keras 3.15 "
        "refuses a model through a later call with more outputs. For an existing model, use "
        "`keras_deit.visualization.attention_model(model)`. For a new one, use "
        "`return_attention_scores=True` in the first call of the layer. See "
        "docs/troubleshooting.md."
    )
    inputs = keras.Input((5, 8))
    for layer in (
        block("mine"),
        MergingTransformerBlock(2, 12, 1, name="mine"),
        MultiHeadSelfAttention(2, name="mine"),
    ):
        layer(inputs)
        with pytest.raises(ValueError, match=re.escape(message)):  # Keras adds where it was
            layer(inputs, return_attention_scores=True)
    asked = block("asked")
    asked(inputs, return_attention_scores=True)
    asked(inputs)
    _, scores = asked(inputs, return_attention_scores=True)
    assert keras.Model(inputs, scores).output_shape == (None, 2, 5, 5)


def around(*inner):
    """A user's model that contains other models."""
    inputs = keras.Input(IMAGES)
    parts = [model(keras.layers.Rescaling(0.5)(inputs)) for model in inner]
    parts = [
        keras.layers.GlobalAveragePooling1D()(part) if len(part.shape) == 3 else part
        for part in parts
    ]
    return keras.Model(
        inputs,
        {
            "mine": keras.layers.Dense(2)(
                keras.layers.Concatenate()(parts) if len(parts) > 1 else parts[0]
            )
        },
    )


def test_models_inside_models(rng):
    backbone = tiny_backbone()
    for model in (around(backbone), around(tiny_classifier()), around(composed())):
        randomize(model, rng)
        x = images(rng)
        found = attention_model(model)(x)
        close(found["outputs"], model(x))
        assert set(found["outputs"]) == {"mine"}
        assert set(found["attention_scores"]) == {"block_0", "block_1", "block_2"}
    close(
        attention_model(around(backbone))(2 * x)["attention_scores"],
        attention_model(backbone)(x)["attention_scores"],
    )


def test_names_where_one_would_stand_for_two(rng):
    left, right = (
        randomize(tiny_backbone(name="left"), rng),
        randomize(tiny_backbone(name="right"), rng),
    )
    model, x = around(left, right), images(rng)
    scores = attention_model(model)(x)["attention_scores"]
    assert set(scores) == {
        f"{name}/block_{index}" for name in ("left", "right") for index in range(3)
    }
    close(scores["right/block_2"], attention_model(right)(x / 2)["attention_scores"]["block_2"])


def test_one_block_called_twice(rng):
    inputs, shared = keras.Input((5, 8)), block("shared")
    model = randomize(keras.Model(inputs, shared(shared(inputs))), rng)
    x = rng.normal(size=(4, 5, 8)).astype("float32")
    found = attention_model(model)(x)
    close(found["outputs"], model(x))
    once, first = shared(x, return_attention_scores=True)
    close(
        found["attention_scores"],
        {"shared": first, "shared:1": shared(once, return_attention_scores=True)[1]},
    )


def test_calls_with_arguments_of_their_own(rng):
    inputs = keras.Input((5, 8))
    x, asked = block("asked")(inputs, return_attention_scores=True)
    x = MultiHeadSelfAttention(2, name="bare")(x, num_queries=None)
    x, token_sizes = MergingTransformerBlock(2, 12, 1, name="merging")(x)
    x, token_sizes = MergingTransformerBlock(2, 12, 1, name="again")(x, token_sizes=token_sizes)
    x = block("last")(x, training=False, num_queries=2)
    model = randomize(keras.Model(inputs, (x, asked, token_sizes)), rng)
    x = rng.normal(size=(4, 5, 8)).astype("float32")
    found = attention_model(model)(x)
    close(found["outputs"], model(x))
    shapes = {name: tuple(scores.shape[1:]) for name, scores in found["attention_scores"].items()}
    assert shapes == {
        "asked": (2, 5, 5),
        "bare": (2, 5, 5),
        "merging": (2, 5, 5),
        "again": (2, 4, 4),
        "last": (2, 3, 3),
    }
    close(found["attention_scores"]["asked"], found["outputs"][1])


def test_a_model_that_has_its_scores(rng):
    classifier, x = randomize(tiny_classifier(), rng), images(rng)
    scored = keras.Model(classifier.input, classifier.outputs_with_attention_scores)
    found = attention_model(scored)(x)
    close(found["outputs"], scored(x))
    close(found["attention_scores"], scored(x)["attention_scores"])


def test_sequential(rng):
    model = randomize(
        keras.Sequential([keras.Input((5, 8)), block("block_0"), keras.layers.Dense(2)]), rng
    )
    x = rng.normal(size=(4, 5, 8)).astype("float32")
    outer = keras.Model(model.inputs[0], keras.layers.Dense(3)(model.outputs[0]))
    inputs = keras.Input((5, 8))
    nested = keras.Model(inputs, model(inputs))
    for each in (model, outer, nested):
        found = attention_model(each)(x)
        close(found["outputs"], each(x))
        close(
            found["attention_scores"]["block_0"],
            model.layers[0](x, return_attention_scores=True)[1],
        )


def test_saves_and_loads(rng, tmp_path):
    model = randomize(around(tiny_classifier()), rng)
    attention = attention_model(model)
    attention.save(tmp_path / "attention.keras")
    x = images(rng)
    close(keras.saving.load_model(tmp_path / "attention.keras")(x), attention(x))


def test_says_what_it_cannot_look_into():
    class Own(keras.Model):
        def call(self, inputs):
            return inputs

    message = (
        "`model` must be a functional model, or a sequential model that is built. If it is a "
        "subclass of `keras.Model`, pass the functional model inside it. Received: model={!r}"
    )
    for model in (Own(), keras.Sequential([block("block_0")]), block("block_0"), None):
        with raises(message.format(model)):
            attention_model(model)
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Dense(2)(inputs))
    with raises(
        "`model` must contain a `TransformerBlock`, `MergingTransformerBlock` or "
        "`MultiHeadSelfAttention` layer: directly, or inside a functional model. Use these layers "
        f"of `keras_deit.layers`. Received: model={model!r}"
    ):
        attention_model(model)
