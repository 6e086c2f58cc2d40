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
from tests.helpers import tiny_classifier as any_tiny_classifier


def tiny_classifier(backbone_overrides=None, **overrides):
    """One block: the backbone has tests of its own, and a classifier compiles."""
    return any_tiny_classifier({"num_layers": 1, **(backbone_overrides or {})}, **overrides)


# Compilation is tested once; elsewhere it would take most of the time, but on JAX, where its lack does.
LOSS = {
    "loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    "metrics": ["accuracy"],
    "jit_compile": BACKEND == "jax",
}


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
    logits = keras.Model(classifier.input, classifier.token_logits)(images(rng := np.random.default_rng(3)))
    mean = (numpy(logits["class"]) + numpy(logits["distillation"])) / 2
    np.testing.assert_allclose(numpy(classifier(images(np.random.default_rng(3)))), witness.softmax(mean), atol=1e-5)


@pytest.mark.parametrize("distilled", [True, False])
def test_head_dropout_acts_in_training_alone(distilled, rng):
    """KerasHub's DeiT builds this layer and never calls it."""
    classifier = randomize(tiny_classifier({"use_distillation_token": distilled}, dropout_rate=0.5), rng)
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


def test_raw_arrays_in_fit_evaluate_and_predict(rng):
    classifier = tiny_classifier()
    classifier.compile("adam", **LOSS)
    # Few sizes of batches: JAX compiles the conversion for each.
    x, y = raw_images(rng, 12), rng.integers(0, 5, 12)
    weights = np.ones(12, "float32")
    history = classifier.fit(x, y, batch_size=8, epochs=2, validation_split=0.34, sample_weight=weights, verbose=0)
    assert set(history.history) == {"loss", "accuracy", "val_loss", "val_accuracy"}
    history = classifier.fit(
        x, y, batch_size=8, validation_data=(x[:8], y[:8]), class_weight={i: 1.0 for i in range(5)}, verbose=0
    )
    expected = classifier(classifier.preprocessor(x))
    np.testing.assert_allclose(classifier.predict(x, batch_size=8, verbose=0), numpy(expected), atol=1e-5)
    np.testing.assert_allclose(classifier.predict_on_batch(x), numpy(expected), atol=1e-5)
    results = classifier.evaluate(x, y, batch_size=8, verbose=0, return_dict=True)
    assert results["accuracy"] == pytest.approx((numpy(expected).argmax(-1) == y).mean())
    assert classifier.test_on_batch(x, y, return_dict=True)["accuracy"] == pytest.approx(results["accuracy"])
    # The last validation of `fit` was on the converted images, as `evaluate` sees them.
    val = classifier.evaluate(x[:8], y[:8], verbose=0, return_dict=True)
    assert history.history["val_loss"][-1] == pytest.approx(val["loss"], abs=1e-5)
    assert np.isfinite(classifier.train_on_batch(x, y)[0])


def test_raw_images_from_tf_data(rng):
    import tensorflow as tf

    classifier = tiny_classifier()
    classifier.compile("adam", **LOSS)
    x, y = raw_images(rng, 8), rng.integers(0, 5, 8)
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(4)
    classifier.fit(dataset, validation_data=dataset, verbose=0)
    from_arrays = classifier.predict(x, verbose=0)
    np.testing.assert_allclose(classifier.predict(dataset, verbose=0), from_arrays, atol=1e-4)
    images_alone = tf.data.Dataset.from_tensor_slices(x).batch(4)
    np.testing.assert_allclose(classifier.predict(images_alone, verbose=0), from_arrays, atol=1e-4)
    results = classifier.evaluate(dataset, verbose=0, return_dict=True)
    assert results["accuracy"] == pytest.approx((from_arrays.argmax(-1) == y).mean())


class Batches(keras.utils.PyDataset):
    def __init__(self, x, y):
        super().__init__()
        self.x, self.y, self.epochs = x, y, 0

    @property
    def num_batches(self):
        return 2

    def __getitem__(self, index):
        return self.x[5 * index : 5 * index + 5], self.y[5 * index : 5 * index + 5]

    def on_epoch_end(self):
        self.epochs += 1


def test_raw_images_from_a_py_dataset(rng):
    classifier = tiny_classifier()
    classifier.compile("adam", **LOSS)
    x, y = raw_images(rng, 10), rng.integers(0, 5, 10)
    dataset = Batches(x, y)
    classifier.fit(dataset, epochs=2, shuffle=False, verbose=0)
    assert dataset.epochs >= 2
    np.testing.assert_allclose(classifier.predict(dataset, verbose=0), classifier.predict(x, verbose=0), atol=1e-5)


def test_arrays_are_read_in_a_new_order_each_epoch_and_labels_follow(rng):
    classifier = tiny_classifier()
    x = np.broadcast_to(np.arange(10, dtype="uint8")[:, None, None, None], (10, 20, 30, 3))
    y = np.arange(10)
    dataset = classifier._convert(x, y, None, 4, shuffle=True)
    orders = []
    for _ in range(3):
        dataset.on_epoch_begin()
        batches = [dataset[i] for i in range(dataset.num_batches)]
        labels = np.concatenate([labels for _, labels in batches])
        values = np.concatenate([images for images, _ in batches])[:, 0, 0, 0]
        np.testing.assert_array_equal(labels[np.argsort(values)], y)
        orders.append(labels.tolist())
    assert sorted(orders[0]) == y.tolist()
    assert orders[0] != orders[1] != orders[2]


def test_a_source_that_cannot_be_converted(rng):
    classifier = tiny_classifier()
    with raises(
        "With a preprocessor attached, images come as an array, a tf.data.Dataset or a keras.utils.PyDataset. For anything "
        "else, call `preprocessor(images)` in your own pipeline and use a classifier with `preprocessor=None`. "
        "Received: generator",
        kind=TypeError,
    ):
        classifier.predict(x for x in raw_images(rng))


def test_data_that_does_not_fit_together(rng):
    import tensorflow as tf

    classifier = tiny_classifier()
    classifier.compile("adam", **LOSS)
    x = raw_images(rng, 6)
    with raises("Images, targets and sample weights must be as many. Received: (6, 20, 30, 3), (8,), None"):
        classifier.fit(x, np.zeros(8), verbose=0)
    with raises("Images, targets and sample weights must be as many. Received: (6, 20, 30, 3), (6,), (7,)"):
        classifier.evaluate(x, np.zeros(6), sample_weight=np.ones(7), verbose=0)
    dataset = tf.data.Dataset.from_tensor_slices((x, np.zeros(6))).batch(2)
    with raises(
        "A dataset brings its own targets and sample weights: yield (images, y) or (images, y, sample_weight), and leave `y` "
        "and `sample_weight` out."
    ):
        classifier.fit(dataset, np.zeros(6), verbose=0)
    with raises(
        "`validation_split` is for arrays. Split the dataset before, and give `validation_data`. "
        f"Received: x={type(dataset).__name__}"
    ):
        classifier.fit(dataset, validation_split=0.5, verbose=0)
    assert classifier._convert(x, [0, 1, 2, 3, 4, 0], None, 4)[0][1].tolist() == [0, 1, 2, 3]


@pytest.fixture(scope="module")
def bad_and_good():
    """One classifier for all that is refused: on JAX an error in a step would cost it the weights."""
    return tiny_classifier()


@pytest.mark.parametrize(
    ("shape", "advice"),
    [
        ((20, 30, 3), None),
        ((6, 20, 30), None),
        ((), None),
        ((2, 20, 30, 1), "Convert the images, or load the model for theirs, with another `image_shape`."),
        ((0, 20, 30, 3), "Give one at least."),
    ],
)
def test_images_of_another_shape(shape, advice, bad_and_good, rng):
    import tensorflow as tf

    classifier, good, y = bad_and_good, raw_images(rng), np.zeros(4, int)
    classifier.compile("sgd", **LOSS)
    expected = numpy(classifier(classifier.preprocessor(good)))
    bad = np.zeros(shape, "uint8")
    advice = advice or (
        "For one image give `images[None]`, for a dataset `dataset.batch(32)`, and keep the axis of the channels, also of one."
    )
    message = f"Images must come in batches of shape (batch, height, width, 3). {advice} Received: images of shape "
    ways = [
        classifier.predict,
        classifier.predict_on_batch,
        lambda x: classifier.fit(x, y),
        lambda x: classifier.fit(good, y, validation_data=(x, y)),
        lambda x: classifier.evaluate(x, y),
    ]
    for way in ways:
        with raises(f"{message}{shape}"):
            way(bad)
    if len(shape) >= 3 and shape[0]:
        with raises(f"{message}{(None, *shape[1:])}"):
            classifier.fit(tf.data.Dataset.from_tensor_slices((bad, np.zeros(shape[0], int))).batch(2))
        with raises(f"{message}{shape}"):
            classifier.predict(OneBatch(bad, y))
    if len(shape) == 3:
        with raises(f"{message}{shape}"):
            classifier.predict(tf.data.Dataset.from_tensors(bad))  # not batched
    np.testing.assert_allclose(classifier.predict(good, verbose=0), expected, atol=1e-5)


class OneBatch(keras.utils.PyDataset):
    num_batches = 1

    def __init__(self, *batch):
        super().__init__()
        self.batch = batch

    def __getitem__(self, index):
        return self.batch


def test_images_of_another_shape_with_channels_first(rng):
    classifier = tiny_classifier(
        {"image_shape": (3, 12, 32), "data_format": "channels_first"},
        preprocessor=DeiTImageConverter((12, 32), data_format="channels_first"),
    )
    with raises(
        "Images must come in batches of shape (batch, 3, height, width). Convert the images, or load the model for theirs, with another "
        "`image_shape`. Received: images of shape (4, 20, 30, 3)"
    ):
        classifier.predict(raw_images(rng))


NOT_INDICES = (
    "Labels must be whole numbers from 0 to 4, the classes of the model. Count the classes from 0, or give the model as many."
)


@pytest.mark.parametrize(
    ("loss", "labels", "message"),
    [
        ("indices", [0, 1, 5, 2], f"{NOT_INDICES} Received: labels from 0 to 5"),
        ("indices", [0, -1, 1, 2], f"{NOT_INDICES} Received: labels from -1 to 2"),
        ("indices", [0.5, 1.0, 1.0, 2.0], f"{NOT_INDICES} Received: labels from 0.5 to 2.0"),
        ("indices", [0, np.nan, 1, 2], f"{NOT_INDICES} Received: labels from nan to nan"),
        ("name", [[0], [1], [5], [2]], f"{NOT_INDICES} Received: labels from 0 to 5"),
        (
            "indices",
            ["ant", "bee", "cat", "dog"],
            "Labels must be numbers. Give the index of each class, from 0 to 4. Received: labels of dtype <U3",
        ),
        (
            "indices",
            np.eye(5)[:4],
            "The loss takes indices of classes, (batch,). For these labels, compile with "
            "`loss=keras.losses.CategoricalCrossentropy(from_logits=True)`. Received: labels of shape (4, 5)",
        ),
        (
            "name",
            np.zeros((4, 2)),
            "The loss takes indices of classes, (batch,). Give the labels that shape. Received: labels of shape (4, 2)",
        ),
        (
            "one-hot",
            [0, 1, 2, 3],
            "The loss takes a value for each class, (batch, 5). For these labels, compile with "
            "`loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True)`. Received: labels of shape (4,)",
        ),
        ("one-hot", 2 * np.eye(5)[:4], "Labels must be values from 0 to 1. Received: labels from 0.0 to 2.0"),
        ("indices", None, "There are no labels to learn from or to compare with: give `y`, or a dataset of (images, labels)."),
    ],
)
def test_labels_that_do_not_fit(loss, labels, message, bad_and_good, rng):
    import tensorflow as tf

    losses = {
        "indices": LOSS["loss"],
        "name": "sparse_categorical_crossentropy",
        "one-hot": keras.losses.CategoricalCrossentropy(from_logits=True),
    }
    classifier, x = bad_and_good, raw_images(rng)
    classifier.compile("sgd", losses[loss], jit_compile=LOSS["jit_compile"])
    y = labels if labels is None else np.asarray(labels)
    of_batch = (x,) if y is None else (x, y)
    sources = [(x, labels), (OneBatch(*of_batch),)]
    if "of shape" in message or y is None:  # of tf.data nothing else is known before
        sources.append((tf.data.Dataset.from_tensors(of_batch),))
    for source in sources:
        for method in (classifier.fit, classifier.evaluate):
            with raises(message):
                method(*source)
    with raises(message):
        classifier.fit(x, np.eye(5)[:4] if loss == "one-hot" else np.zeros(4), validation_data=(x, labels))
    assert np.isfinite(classifier.predict(x, verbose=0)).all()


def test_labels_that_fit(rng):
    import tensorflow as tf

    classifier, x = tiny_classifier(), raw_images(rng)
    fitting = [
        (keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1), [0, -1, 4, 4]),
        ("sparse_categorical_crossentropy", tf.constant([[0], [1], [4], [4]])),
        (keras.losses.CategoricalCrossentropy(from_logits=True), [[0, 0, 0.7, 0.3000001, 0]] * 4),
        (keras.losses.CategoricalCrossentropy(from_logits=True), keras.ops.ones((4, 5))),
        ("mse", np.full((4, 5), -3.0)),  # another loss takes what it will
    ]
    classifier._check_data(x)  # without a loss, labels do not matter
    for loss, labels in fitting:
        classifier.compile("sgd", loss)
        classifier._check_data(x, labels)
    unknown = tf.data.Dataset.from_generator(lambda: [], (tf.uint8, tf.int32))
    classifier.compile("sgd", **LOSS)
    classifier._check_data(unknown)
    one_class = tiny_classifier(num_classes=1, labels=None)
    one_class.compile("sgd", "binary_crossentropy")
    one_class._check_data(x, [0, 1, 1, 0])


@pytest.mark.parametrize("source", ["array", "tensor", "PyDataset"])
def test_images_that_were_scaled_already_get_a_warning(source, rng):
    classifier = tiny_classifier()
    scaled = rng.uniform(-1, 1, size=(4, 20, 30, 3)).astype("float32")
    scaled[0, 0, 0] = -1, 1, 1
    as_source = {"array": np.asarray, "tensor": keras.ops.convert_to_tensor, "PyDataset": OneBatch}[source]
    with pytest.warns(UserWarning) as caught:
        classifier.predict(as_source(scaled), verbose=0)
    ours = [warning for warning in caught if warning.category is UserWarning]  # Keras has some of NumPy
    assert [str(warning.message) for warning in ours] == [
        "Raw images have levels from 0 to 255, and these have none above 1, as if they were scaled already. Give them as they were: "
        "`255 * images` if they are from 0 to 1, `127.5 * (images + 1)` if they are from -1 to 1. Received: levels from -1 to 1"
    ]
    assert ours[0].filename == __file__  # where `predict` was called
    # A warning is an error here: setup.cfg.
    for levels in (127.5 * (scaled + 1), np.zeros_like(scaled), (scaled > 0).astype("uint8")):
        classifier.predict(as_source(levels), verbose=0)
    tiny_classifier(preprocessor=keras.layers.Rescaling(2.0)).predict(
        as_source(scaled[:, :12].repeat(2, 2)[:, :, :32]), verbose=0
    )


def test_without_a_preprocessor_the_methods_are_those_of_keras(rng):
    classifier = tiny_classifier(preprocessor=None)
    classifier.compile("adam", **LOSS)
    x, y = images(rng, 10), rng.integers(0, 5, 10)
    classifier.fit(x, y, validation_split=0.2, verbose=0)
    np.testing.assert_allclose(classifier.predict(x, verbose=0), numpy(classifier(x)), atol=1e-5)


def test_saved_model_keeps_preprocessor_labels_and_bits(rng, tmp_path):
    classifier = randomize(tiny_classifier(), rng)
    x = raw_images(rng)
    classifier.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    same_arrays(loaded.predict(x, verbose=0), classifier.predict(x, verbose=0))
    assert loaded.labels == classifier.labels
    assert loaded.preprocessor.get_config() == classifier.preprocessor.get_config()


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16", "bfloat16"])
def test_a_training_step_is_finite_and_compiled(policy, rng):
    classifier = tiny_classifier({"dtype": policy, "drop_path_rate": 0.1, "layer_scale_init_value": 1e-4})
    # A warning that compilation fell back would be an error: setup.cfg.
    classifier.compile("sgd", **{**LOSS, "jit_compile": BACKEND != "torch"})
    loss, _ = classifier.train_on_batch(raw_images(rng, 8), rng.integers(0, 5, 8))
    assert np.isfinite(loss)


quantizing = pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method:UserWarning")


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
    # What was loaded saves as well: sub-layers must not keep the map of policies that their config came with.
    for turn in range(2):
        classifier.save(tmp_path / f"{turn}.keras")
        classifier = keras.saving.load_model(tmp_path / f"{turn}.keras")
        same_arrays(classifier.predict(x, verbose=0), quantized)
        classifier.save_to_preset(tmp_path / "int8")
        classifier = DeiTImageClassifier.from_preset(tmp_path / "int8")
        same_arrays(classifier.predict(x, verbose=0), quantized)


@quantizing
def test_a_classifier_fresh_from_a_preset_can_be_quantized(rng, tmp_path):
    """Keras refuses to quantize a model with a layer that is not built, and a preprocessor is never called before."""
    for preprocessor in (DeiTImageConverter((12, 32)), keras.layers.Rescaling(1 / 255)):
        tiny_classifier(preprocessor=preprocessor).save_to_preset(tmp_path / "preset")
        classifier = DeiTImageClassifier.from_preset(tmp_path / "preset")
        classifier.quantize("int8")
        assert classifier.head.class_head.quantization_mode == "int8"


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
    assert all(layer.quantization_mode is None for layer in random.backbone.layers + [random.head.class_head])
    assert random.backbone.blocks[0].mlp.projection.quantization_mode is None


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


def test_lora_on_the_fused_qkv_trains_saves_and_loads(rng, tmp_path):
    classifier = randomize(tiny_classifier(), rng)
    x, y = raw_images(rng, 16), rng.integers(0, 5, 16)
    for block in classifier.backbone.blocks:
        block.attention.qkv.enable_lora(2)
    kernel = numpy(classifier.backbone.blocks[0].attention.qkv._kernel)
    classifier.compile(keras.optimizers.SGD(0.1), **LOSS)
    before = classifier.predict(x, verbose=0)
    classifier.fit(x, y, verbose=0)
    np.testing.assert_array_equal(numpy(classifier.backbone.blocks[0].attention.qkv._kernel), kernel)
    after = classifier.predict(x, verbose=0)
    assert not np.allclose(after, before)
    classifier.save(tmp_path / "lora.keras")
    np.testing.assert_allclose(keras.saving.load_model(tmp_path / "lora.keras").predict(x, verbose=0), after, atol=1e-5)
    classifier.save_to_preset(tmp_path / "lora")
    np.testing.assert_allclose(DeiTImageClassifier.from_preset(tmp_path / "lora").predict(x, verbose=0), after, atol=1e-5)


def test_decode_predictions():
    classifier = tiny_classifier()
    logits = np.array([[0.0, 1.0, 2.0, 3.0, 4.0], [4.0, 0.0, 4.0, 0.0, 0.0]])
    first, second = classifier.decode_predictions(logits, top=2)
    assert [label for label, _ in first] == ["eel", "dog"]
    assert first[0][1] == pytest.approx(witness.softmax(logits)[0, 4])
    assert [label for label, _ in second] == ["ant", "cat"]
    assert len(classifier.decode_predictions(logits, top=9)[0]) == 5
    [[(label, score)]] = tiny_classifier(activation="softmax").decode_predictions([[0.1, 0.2, 0.3, 0.4, 0.0]], top=1)
    assert (label, score) == ("dog", pytest.approx(0.4))


def test_errors():
    with raises("`pooling` must be one of 'token', 'mean'. Received: pooling='max'"):
        tiny_classifier(pooling="max")
    with raises(
        'With a distillation head the two heads read their tokens: use `pooling="token"`, or `use_distillation_head=False`. '
        "Received: pooling='mean'"
    ):
        tiny_classifier(pooling="mean")
    with raises(
        "The distillation head reads the distillation token, which the backbone lacks. Use a backbone with "
        "`use_distillation_token=True`. Received: use_distillation_head=True"
    ):
        tiny_classifier({"use_distillation_token": False}, use_distillation_head=True)
    with raises("`num_classes` must be a positive integer. Received: num_classes=0"):
        tiny_classifier(num_classes=0)
    with raises("`labels` must have one string for each of the 5 classes. Received: 2 labels"):
        tiny_classifier(labels=["ant", "bee"])
    with raises("`labels` must be a sequence of strings, one for each class. Received: labels='abcde'"):
        tiny_classifier(labels="abcde")
    with raises("`dropout_rate` must be a probability in [0, 1); use 0.0 to switch it off. Received: dropout_rate=-0.1"):
        tiny_classifier(dropout_rate=-0.1)
    with raises("`backbone` must be a `DeiTBackbone`. Received: backbone='deit'"):
        DeiTImageClassifier("deit", 5)
    with raises(
        "`preprocessor` must be a Keras layer, such as `DeiTImageConverter`, or `None`. Received: preprocessor='resize'"
    ):
        tiny_classifier(preprocessor="resize")
    with raises("The labels of the classes are not known. Give `labels=[...]` to `DeiTImageClassifier` or `from_preset`."):
        tiny_classifier(labels=None).decode_predictions(np.zeros((1, 5)))
    with raises("`logits` must be what `predict` returns, (batch, 5). Received: shape (1, 4)"):
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
    """As transformers' DeiTForImageClassification: the class token is read, or the patches, and never the distillation token."""
    classifier = randomize(tiny_classifier(use_distillation_head=False, pooling=pooling), rng)
    assert list(classifier.token_logits) == ["class"]
    x = images(rng)
    tokens = numpy(classifier.backbone(x))
    pooled = tokens[:, 0] if pooling == "token" else tokens[:, 2:].mean(axis=1)
    expected = pooled @ numpy(classifier.head.kernel) + numpy(classifier.head.bias)
    np.testing.assert_allclose(numpy(classifier(x)), expected, atol=1e-4)
    classifier.save_to_preset(tmp_path / "preset")
    np.testing.assert_array_equal(numpy(DeiTImageClassifier.from_preset(tmp_path / "preset")(x)), numpy(classifier(x)))
