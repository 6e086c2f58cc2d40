import contextlib
import inspect
import json

import keras
import numpy as np
import pytest

from keras_deit.layers import DeiTImageConverter, TransformerBlock
from keras_deit.models import DeiTImageClassifier
from tests import witness
from tests.conftest import BACKEND
from tests.helpers import images, numpy, raises, randomize, raw_images, same_arrays, tiny_backbone
from tests.models.tiny import LOSS, tiny_classifier

pytestmark = pytest.mark.backend


def test_distilled_output_is_the_mean_of_the_heads(rng):
    classifier = randomize(tiny_classifier(), rng)
    x = images(rng)
    heads = keras.Model(classifier.input, classifier.token_logits)(x)
    tokens = numpy(classifier.backbone(x)).astype("float64")
    weights = witness.weights_of(classifier)
    for index, name in enumerate(("class", "distillation")):
        expected = witness.dense(tokens[:, index], witness.under(weights, f"head/{name}_head"))
        np.testing.assert_allclose(numpy(heads[name]), expected, atol=1e-5)
    mean = (numpy(heads["class"]) + numpy(heads["distillation"])) / 2
    np.testing.assert_allclose(numpy(classifier(x)), mean, atol=1e-6)


@pytest.mark.parametrize("pooling", ["token", "mean"])
def test_plain_classifier_reads_the_class_token_or_the_mean_of_the_patches(pooling, rng):
    classifier = randomize(tiny_classifier({"use_distillation_token": False}, pooling=pooling), rng)
    x = images(rng)
    tokens = numpy(classifier.backbone(x)).astype("float64")
    pooled = tokens[:, 0] if pooling == "token" else tokens[:, 1:].mean(axis=1)
    expected = witness.dense(pooled, witness.under(witness.weights_of(classifier), "head"))
    np.testing.assert_allclose(numpy(classifier(x)), expected, atol=1e-5)
    assert list(classifier.token_logits) == ["class"]
    assert classifier.token_logits["class"] is classifier.output


def test_activation_is_applied_to_the_logits(rng):
    classifier = randomize(tiny_classifier(activation="softmax"), rng)
    logits = keras.Model(classifier.input, classifier.token_logits)(
        images(rng := np.random.default_rng(3))
    )
    mean = (numpy(logits["class"]) + numpy(logits["distillation"])) / 2
    np.testing.assert_allclose(
        numpy(classifier(images(np.random.default_rng(3)))), witness.softmax(mean), atol=1e-5
    )


@pytest.mark.parametrize("distilled", [True, False])
def test_head_dropout_acts_in_training_alone(distilled, rng):
    """KerasHub's DeiT builds this layer and never calls it."""
    classifier = randomize(
        tiny_classifier({"use_distillation_token": distilled}, dropout_rate=0.5), rng
    )
    x = images(rng)
    np.testing.assert_array_equal(numpy(classifier(x)), numpy(classifier(x, training=False)))
    assert not np.allclose(numpy(classifier(x)), numpy(classifier(x, training=True)))


def test_config_is_the_arguments_and_comes_back():
    classifier = tiny_classifier({"drop_path_rate": 0.1}, dropout_rate=0.2, activation="softmax")
    config = classifier.get_config()
    assert set(config) == set(inspect.signature(DeiTImageClassifier.__init__).parameters) - {"self"}
    config = json.loads(json.dumps(config))
    twin = DeiTImageClassifier.from_config(config)
    assert json.loads(json.dumps(twin.get_config())) == config


def test_saved_model_keeps_preprocessor_labels_and_bits(rng, tmp_path):
    classifier = randomize(tiny_classifier(), rng)
    x = raw_images(rng)
    classifier.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    same_arrays(loaded.predict(x, verbose=0), classifier.predict(x, verbose=0))
    assert loaded.labels == classifier.labels
    assert loaded.preprocessor.get_config() == classifier.preprocessor.get_config()


@pytest.mark.parametrize(
    "policy",
    [
        "mixed_bfloat16",
        *(
            pytest.param(p, marks=pytest.mark.slow)
            for p in ("float32", "mixed_float16", "bfloat16")
        ),
    ],
)
def test_a_training_step_is_finite_and_compiled(policy, rng):
    classifier = tiny_classifier(
        {"dtype": policy, "drop_path_rate": 0.1, "layer_scale_init_value": 1e-4}
    )
    # A warning that compilation fell back would be an error: setup.cfg.
    classifier.compile("sgd", **{**LOSS, "jit_compile": BACKEND != "torch"})
    loss, _ = classifier.train_on_batch(raw_images(rng, 8), rng.integers(0, 5, 8))
    assert np.isfinite(loss)


quantizing = pytest.mark.filterwarnings(
    "ignore:Layer .* does not have a `quantize` method:UserWarning"
)


@pytest.mark.slow
@quantizing
def test_int8_works_saves_and_loads_again_and_again(rng, tmp_path):
    classifier = randomize(tiny_classifier(), rng)
    x = raw_images(rng, 16)
    before = classifier.predict(x, verbose=0)
    classifier.quantize("int8")
    quantized = classifier.predict(x, verbose=0)
    assert not np.array_equal(quantized, before)
    np.testing.assert_allclose(quantized, before, atol=0.15 * abs(before).max())
    assert str(classifier.backbone.blocks[0].attention.qkv.kernel.dtype) == "int8"
    # What was loaded saves as well: sub-layers must not keep the map of policies that their config
    # came with.
    for turn in range(2):
        classifier.save(tmp_path / f"{turn}.keras")
        classifier = keras.saving.load_model(tmp_path / f"{turn}.keras")
        same_arrays(classifier.predict(x, verbose=0), quantized)
        classifier.save_to_preset(tmp_path / "int8")
        classifier = DeiTImageClassifier.from_preset(tmp_path / "int8")
        same_arrays(classifier.predict(x, verbose=0), quantized)


@pytest.mark.slow
@quantizing
def test_a_classifier_fresh_from_a_preset_can_be_quantized(rng, tmp_path):
    """Keras refuses to quantize a model with a layer that is not built, and a preprocessor is never
    called before.
    """
    for preprocessor in (DeiTImageConverter((12, 32)), keras.layers.Rescaling(1 / 255)):
        tiny_classifier(preprocessor=preprocessor).save_to_preset(tmp_path / "preset")
        classifier = DeiTImageClassifier.from_preset(
            tmp_path / "preset",
            preprocessor=type(preprocessor).from_config(preprocessor.get_config()),
        )
        classifier.quantize("int8")
        assert classifier.head.class_head.quantization_mode == "int8"


@pytest.mark.slow
@quantizing
def test_a_fresh_head_on_an_int8_preset_is_not_quantized(rng, tmp_path):
    classifier = randomize(tiny_classifier(), rng)
    classifier.quantize("int8")
    classifier.save_to_preset(tmp_path / "int8")
    fresh = DeiTImageClassifier.from_preset(tmp_path / "int8", num_classes=3)
    assert fresh.head.class_head.quantization_mode is None
    assert fresh.backbone.blocks[0].mlp.projection.quantization_mode == "int8"
    assert len(fresh.head.trainable_variables) == 4
    random = DeiTImageClassifier.from_preset(tmp_path / "int8", load_weights=False)
    assert all(
        layer.quantization_mode is None
        for layer in random.backbone.layers + [random.head.class_head]
    )
    assert random.backbone.blocks[0].mlp.projection.quantization_mode is None


@pytest.mark.slow
@quantizing
@pytest.mark.parametrize("place", ["functional", "sequential", "named scope"])
def test_a_quantized_block_loads_wherever_it_stands(place, rng, tmp_path):
    layers = [keras.Input((5, 8)), TransformerBlock(2, 12, name="mine"), keras.layers.Dense(3)]
    if place == "sequential":
        model = keras.Sequential(layers)
    else:
        with keras.name_scope("outer") if place == "named scope" else contextlib.nullcontext():
            model = keras.Model(layers[0], layers[2](layers[1](layers[0])))
    randomize(model, rng)
    model.quantize("int8")
    x = rng.normal(size=(4, 5, 8)).astype("float32")
    expected = numpy(model(x))
    for _ in range(2):
        model.save(tmp_path / "model.keras")
        model = keras.saving.load_model(tmp_path / "model.keras")
        same_arrays(model(x), expected)


@pytest.mark.slow
def test_lora_on_the_fused_qkv_trains_saves_and_loads(rng, tmp_path):
    classifier = randomize(tiny_classifier(), rng)
    x, y = raw_images(rng, 16), rng.integers(0, 5, 16)
    for block in classifier.backbone.blocks:
        block.attention.qkv.enable_lora(2)
    kernel = numpy(classifier.backbone.blocks[0].attention.qkv._kernel)
    classifier.compile(keras.optimizers.SGD(0.1), **LOSS)
    before = classifier.predict(x, verbose=0)
    classifier.fit(x, y, verbose=0)
    np.testing.assert_array_equal(
        numpy(classifier.backbone.blocks[0].attention.qkv._kernel), kernel
    )
    after = classifier.predict(x, verbose=0)
    assert not np.allclose(after, before)
    classifier.save(tmp_path / "lora.keras")
    np.testing.assert_allclose(
        keras.saving.load_model(tmp_path / "lora.keras").predict(x, verbose=0), after, atol=1e-5
    )
    classifier.save_to_preset(tmp_path / "lora")
    np.testing.assert_allclose(
        DeiTImageClassifier.from_preset(tmp_path / "lora").predict(x, verbose=0), after, atol=1e-5
    )


def test_decode_predictions():
    classifier = tiny_classifier()
    logits = np.array([[0.0, 1.0, 2.0, 3.0, 4.0], [4.0, 0.0, 4.0, 0.0, 0.0]])
    first, second = classifier.decode_predictions(logits, top=2)
    assert [label for label, _ in first] == ["eel", "dog"]
    assert first[0][1] == pytest.approx(witness.softmax(logits)[0, 4])
    assert [label for label, _ in second] == ["ant", "cat"]
    assert len(classifier.decode_predictions(logits, top=9)[0]) == 5
    [[(label, score)]] = tiny_classifier(activation="softmax").decode_predictions(
        [[0.1, 0.2, 0.3, 0.4, 0.0]], top=1
    )
    assert (label, score) == ("dog", pytest.approx(0.4))


NO_HEAD = (
    "`num_classes` must be a positive integer. For features without a head, use `DeiTBackbone`: "
    "`backbone(images)[:, 0]` is the class token. Received: num_classes=0"
)


def test_no_classes_are_for_the_backbone():
    with raises(NO_HEAD):
        tiny_classifier(num_classes=0, labels=None)
    with raises(NO_HEAD):
        DeiTImageClassifier.from_preset("deit_nano_distilled_patch4_32_digits", num_classes=0)
    with raises("`num_classes` must be a positive integer. Received: num_classes=-1"):
        tiny_classifier(num_classes=-1)


def test_a_clone_by_its_config_is_of_the_class_with_fresh_weights(rng):
    for model in (tiny_classifier(), tiny_backbone()):
        x = images(rng)
        clone = type(model).from_config(model.get_config())
        assert type(clone) is type(model)
        assert clone.get_config() == model.get_config()
        assert np.abs(numpy(clone(x)) - numpy(model(x))).max() > 1e-3
        # Keras makes a plain model of what is a graph: the same layers, and none of our methods.
        plain = keras.models.clone_model(model)
        plain.set_weights(model.get_weights())
        np.testing.assert_allclose(numpy(plain(x)), numpy(model(x)), atol=1e-6)


def test_errors():
    with raises(
        '`pooling="mean"` needs a single head, but this classifier has two. Use `pooling="token"`, or `use_distillation_head=False`. Received: pooling=\'mean\''
    ):
        tiny_classifier(pooling="mean")
    with raises(
        "`use_distillation_head=True` needs a backbone with `use_distillation_token=True`. "
        "Received: use_distillation_token=False"
    ):
        tiny_classifier({"use_distillation_token": False}, use_distillation_head=True)
    with raises("`labels` must have one string for each of the 5 classes. Received: 2 labels"):
        tiny_classifier(labels=["ant", "bee"])
    with raises(
        "`labels` must be a sequence of strings, one for each class. Received: labels='abcde'"
    ):
        tiny_classifier(labels="abcde")
    with raises(
        "`dropout_rate` must be a probability in [0, 1); use 0.0 to switch it off. Received: "
        "dropout_rate=-0.1"
    ):
        tiny_classifier(dropout_rate=-0.1)
    with raises("`backbone` must be a `DeiTBackbone`. Received: backbone='deit'"):
        DeiTImageClassifier("deit", 5)
    with raises(
        "`preprocessor` must be a Keras layer, such as `DeiTImageConverter`, or `None`. Received: "
        "preprocessor='resize'"
    ):
        tiny_classifier(preprocessor="resize")
    with raises(
        "The classifier has no labels. Use `labels=[...]` in `DeiTImageClassifier` or "
        "`from_preset`."
    ):
        tiny_classifier(labels=None).decode_predictions(np.zeros((1, 5)))
    with raises(
        "`logits` must have shape (batch, 5), as `predict` returns them. Received: shape (1, 4)"
    ):
        tiny_classifier().decode_predictions(np.zeros((1, 4)))
    with pytest.raises(TypeError, match="unexpected keyword argument 'classes'"):
        DeiTImageClassifier(tiny_backbone(), 5, classes=5)


def test_a_backbone_serves_two_classifiers(rng):
    backbone = tiny_backbone()
    first = DeiTImageClassifier(backbone, 3)
    second = DeiTImageClassifier(backbone, 4, preprocessor=DeiTImageConverter((12, 32)))
    x = images(rng)
    assert numpy(first(x)).shape == (4, 3)
    assert numpy(second(x)).shape == (4, 4)


@pytest.mark.parametrize("pooling", ["token", "mean"])
def test_one_head_on_a_distilled_backbone(pooling, rng, tmp_path):
    """As transformers' DeiTForImageClassification: the class token is read, or the patches, and
    never the distillation token.
    """
    classifier = randomize(tiny_classifier(use_distillation_head=False, pooling=pooling), rng)
    assert list(classifier.token_logits) == ["class"]
    x = images(rng)
    tokens = numpy(classifier.backbone(x))
    pooled = tokens[:, 0] if pooling == "token" else tokens[:, 2:].mean(axis=1)
    expected = pooled @ numpy(classifier.head.kernel) + numpy(classifier.head.bias)
    np.testing.assert_allclose(numpy(classifier(x)), expected, atol=1e-4)
    classifier.save_to_preset(tmp_path / "preset")
    np.testing.assert_array_equal(
        numpy(DeiTImageClassifier.from_preset(tmp_path / "preset")(x)), numpy(classifier(x))
    )


@pytest.mark.parametrize("labels", [5, {"a": 1}, [None] * 5, [b"x"] * 5, ValueError("x")])
def test_labels_that_are_no_strings(labels):
    """5 was "object is not iterable", and `None` became the label "None"."""
    with raises(
        f"`labels` must be a sequence of strings, one for each class. Received: labels={labels!r}"
    ):
        tiny_classifier(labels=labels)
