"""`compile()` without arguments, and what a user gives in its place."""

import keras
import numpy as np
import pytest

from keras_deit.models import DeiTDistiller
from keras_deit.training import RECIPES
from tests.conftest import BACKEND
from tests.helpers import raises, raw_images, tiny_classifier

pytestmark = pytest.mark.backend


def test_compile_without_arguments_is_enough_to_fit(rng, tmp_path):
    classifier = tiny_classifier({"num_layers": 1})
    classifier.compile(jit_compile=BACKEND == "jax")
    assert classifier.optimizer.get_config()["learning_rate"] == pytest.approx(1e-4)
    x, y = raw_images(rng, 8), rng.integers(0, 5, 8)
    history = classifier.fit(x, y, verbose=0)
    assert set(history.history) == {"loss", "accuracy"}
    classifier.save(tmp_path / "a.keras")
    loaded = keras.saving.load_model(tmp_path / "a.keras")
    assert loaded.optimizer.iterations == classifier.optimizer.iterations
    assert loaded.evaluate(x, y, verbose=0, return_dict=True) == pytest.approx(
        classifier.evaluate(x, y, verbose=0, return_dict=True), abs=1e-5
    )
    assert np.isfinite(loaded.fit(x, y, verbose=0).history["loss"]).all()


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        (None, keras.losses.SparseCategoricalCrossentropy(from_logits=True)),
        ("softmax", keras.losses.SparseCategoricalCrossentropy(from_logits=False)),
        ("sigmoid", keras.losses.BinaryCrossentropy()),
    ],
)
def test_the_loss_is_that_of_the_activation(activation, expected, rng):
    classifier = tiny_classifier({"num_layers": 1}, activation=activation)
    classifier.compile(jit_compile=False)
    assert type(classifier.loss) is type(expected)
    assert classifier.loss.get_config() == expected.get_config()
    y = np.eye(5)[[0, 1, 2, 3]] if activation == "sigmoid" else np.arange(4)
    results = classifier.evaluate(raw_images(rng), y, verbose=0, return_dict=True)
    answers = classifier.predict(raw_images(rng), verbose=0)
    assert set(results) == {"loss", "accuracy"}
    assert answers.shape == (4, 5)


@pytest.mark.slow
def test_metrics_are_automatic_only_with_the_loss(rng):
    x, y = raw_images(rng), np.arange(4)

    def logs(*args, **kwargs):
        # Keras keeps the metrics of an earlier `compile`
        classifier = tiny_classifier({"num_layers": 1})
        classifier.compile(*args, jit_compile=False, **kwargs)
        return set(classifier.evaluate(x, y, verbose=0, return_dict=True))

    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    assert logs("sgd") == {"loss", "accuracy"}
    assert logs("sgd", loss) == {"loss"}
    assert logs("sgd", loss, metrics=["accuracy"]) == {"loss", "accuracy"}
    # As positions in `keras.Model.compile`
    assert logs("sgd", loss, None, ["accuracy"]) == {"loss", "accuracy"}
    assert logs(metrics=None) == {"loss"}


@pytest.mark.parametrize(("activation", "num_classes"), [("relu", 5), (None, 1)])
def test_an_activation_without_a_usual_loss(activation, num_classes):
    classifier = tiny_classifier(
        {"num_layers": 1}, activation=activation, num_classes=num_classes, labels=None
    )
    with raises(
        "There is no default loss for this `activation` and `num_classes`. Use `loss=`. "
        f"Received: activation={activation or 'linear'!r}, num_classes={num_classes}"
    ):
        classifier.compile()
    classifier.compile("sgd", "mse")


def test_training_in_float16_is_refused(rng):
    """The loss was NaN from step 46 on: Adam's epsilon is 0 in float16."""
    message = (
        "Weights in float16 cannot be trained: the optimizer's small numbers, such as Adam's "
        "`epsilon`, are 0 in float16, and the weights become NaN. Use "
        '`dtype="mixed_float16"`, which keeps the weights in float32. To evaluate without '
        "training, use `compile(optimizer=None, ...)`. Received: trainable weights of dtype float16"
    )
    half = tiny_classifier({"num_layers": 1, "dtype": "float16"})
    for optimizer in ("auto", "sgd", keras.optimizers.AdamW()):
        with raises(message):
            half.compile(optimizer)
    with raises(message):
        DeiTDistiller(half, None).compile("adamw")
    with raises(message):
        RECIPES["new_classes"].build_optimizer(half, 10)
    x, y = raw_images(rng, 8), rng.integers(0, 5, 8)
    half.compile(None)
    assert np.isfinite(half.evaluate(x, y, verbose=0)).all()
    assert np.isfinite(half.predict(x, verbose=0)).all()
    with pytest.warns(UserWarning, match="is not compiled. Weights in float16"):
        half.compile_from_config({})


def test_a_head_in_float32_trains_on_a_frozen_backbone_in_float16(rng):
    classifier = tiny_classifier({"num_layers": 1, "dtype": "float16"}, dtype="float32")
    classifier.backbone.trainable = False
    classifier.compile(jit_compile=BACKEND == "jax")
    loss = classifier.fit(raw_images(rng, 8), rng.integers(0, 5, 8), verbose=0).history["loss"]
    assert np.isfinite(loss).all()
