"""Cosub: the two submodels of a step, their losses, and what is refused."""

import keras
import numpy as np
import pytest

from keras_deit.layers import DeiTImageConverter
from keras_deit.losses import MixedLabelBinaryCrossentropy
from keras_deit.models import CosubTrainer
from tests.conftest import BACKEND
from tests.helpers import images, numpy, raises, randomize, raw_images, same_arrays
from tests.models.tiny import JIT, log_softmax, tiny_classifier

pytestmark = pytest.mark.backend
WEIGHTS = np.asarray([1.0, 0.5, 2.0, 0.0], "float32")


def droppy(rng=None, **overrides):
    """A classifier whose passes differ."""
    drops = {"drop_path_rate": 0.5, "drop_path_schedule": "constant", "num_layers": 2}
    model = tiny_classifier(drops, **{"preprocessor": None, **overrides})
    return model if rng is None else randomize(model, rng)


def binary_cross_entropy(labels, logits):
    """PyTorch's BCEWithLogitsLoss, without the mean over images."""
    logits = logits.astype("float64")
    log_p, log_not_p = -np.logaddexp(0, -logits), -np.logaddexp(0, logits)
    return -(labels * log_p + (1 - labels) * log_not_p).mean(-1)


def cross_entropy(labels, logits):
    return -(labels * log_softmax(logits)).sum(-1)


@pytest.mark.parametrize("kind", ["binary", "categorical"])
def test_loss_is_that_of_the_official_code(kind, rng, monkeypatch):
    classifier, x = droppy(rng, use_distillation_head=False), images(rng)
    labels = rng.dirichlet(np.ones(5), size=4).astype("float32")
    trainer = CosubTrainer(classifier)
    if kind == "binary":
        trainer.compile("sgd", MixedLabelBinaryCrossentropy())
        of_labels, mutual, targets = binary_cross_entropy, binary_cross_entropy, labels > 0
        probabilities = lambda logits: 1 / (1 + np.exp(-logits.astype("float64")))  # noqa: E731
    else:
        trainer.compile("sgd", keras.losses.CategoricalCrossentropy(from_logits=True))
        of_labels, mutual, targets = cross_entropy, cross_entropy, labels
        probabilities = lambda logits: np.exp(log_softmax(logits))  # noqa: E731
    passes, call = [], classifier.head.call
    monkeypatch.setattr(
        classifier.head, "call", lambda x, **_: (passes.append(call(x)), passes[-1])[1]
    )
    y_pred = trainer(x, training=True)
    loss = trainer.compute_loss(x, labels, y_pred, WEIGHTS, training=True)
    a, b = map(numpy, passes)  # two passes, no more
    assert np.abs(a - b).max() > 1e-3
    terms = (
        of_labels(targets, a),
        of_labels(targets, b),
        mutual(probabilities(b), a),
        mutual(probabilities(a), b),
    )
    expected = [(WEIGHTS * term).mean() for term in terms]
    np.testing.assert_allclose(numpy(loss), 0.25 * sum(expected), rtol=1e-5)
    logged = {metric.name: numpy(metric.result()) for metric in trainer.metrics}
    np.testing.assert_allclose(logged["label_loss"], sum(expected[:2]) / 2, rtol=1e-5)
    np.testing.assert_allclose(logged["cosub_loss"], sum(expected[2:]) / 2, rtol=1e-5)


def test_no_gradient_flows_through_the_teaching_submodel(rng):
    trainer = CosubTrainer(droppy())
    trainer.compile("sgd")
    x, student = (rng.normal(size=(4, 5)).astype("float32") for _ in range(2))

    class Taught(keras.Sequential):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            return keras.ops.sum(y_pred) + trainer._mutual_loss(y_pred, y, None)

    model = Taught([keras.Input((5,)), keras.layers.Dense(5, use_bias=False)])
    model.compile(keras.optimizers.SGD(1.0), jit_compile=JIT)
    (before,) = model.get_weights()
    model.fit(x, student, verbose=0)
    of_sum = np.repeat(x.sum(0)[:, None], 5, axis=1)
    np.testing.assert_allclose(model.get_weights()[0], before - of_sum, atol=1e-5)


@pytest.mark.slow
def test_fit_and_evaluate_with_raw_images(rng):
    classifier = droppy(rng, preprocessor=DeiTImageConverter((12, 32), data_format="channels_last"))
    trainer = CosubTrainer(classifier)
    trainer.compile("sgd", metrics=["accuracy"], jit_compile=JIT)
    x, y = raw_images(rng), np.asarray([0, 4, 2, 1])
    before = classifier.get_weights()
    logs = trainer.fit(x, y, validation_data=(x, y), verbose=0).history
    assert sorted(logs) == [
        "accuracy",
        "cosub_loss",
        "label_loss",
        "loss",
        "val_accuracy",
        "val_loss",
    ]
    np.testing.assert_allclose(
        logs["loss"][0], (logs["label_loss"][0] + logs["cosub_loss"][0]) / 2, rtol=1e-5
    )
    assert any(np.abs(a - b).max() > 1e-3 for a, b in zip(before, classifier.get_weights()))
    same_arrays(trainer.predict(x, verbose=0), classifier.predict(x, verbose=0))


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_trains_compiled_saves_and_loads(policy, rng, tmp_path):
    keras.config.set_dtype_policy(policy)
    trainer, x, y = CosubTrainer(droppy()), images(rng), np.asarray([0, 1, 2, 0])
    trainer.compile("adamw", jit_compile=BACKEND != "torch")
    losses = trainer.fit(x, y, epochs=8, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    trainer.save(tmp_path / "trainer.keras")
    loaded = keras.saving.load_model(tmp_path / "trainer.keras")
    assert loaded.get_config() == trainer.get_config()
    same_arrays(loaded.classifier.get_weights(), trainer.classifier.get_weights())
    same_arrays(loaded.optimizer.variables, trainer.optimizer.variables)
    assert np.isfinite(loaded.fit(x, y, verbose=0).history["loss"]).all()


def test_what_is_refused(rng):
    with raises("`classifier` must be a `DeiTImageClassifier`. Received: classifier=None"):
        CosubTrainer(None)
    with raises(
        "`classifier` must have a `drop_path_rate` above 0: its two submodels skip different "
        "blocks. Use `DeiTImageClassifier.from_preset(handle, drop_path_rate=0.1)`; with one block, "
        'also `drop_path_schedule="constant"`. Received: drop_path_rate=0.0'
    ):
        CosubTrainer(tiny_classifier())
    with pytest.raises(ValueError, match=r"Received: drop_path_rate=0\.5"):  # linear: 0 in block 0
        CosubTrainer(tiny_classifier({"num_layers": 1, "drop_path_rate": 0.5}))
    with raises(
        "`classifier` must return logits: use `activation=None`. Received: activation='softmax'"
    ):
        CosubTrainer(droppy(activation="softmax"))
    trainer = CosubTrainer(droppy())
    with raises("`loss` must be a single loss for the class head. Received: loss=['mse']"):
        trainer.compile("sgd", ["mse"])
    trainer.compile("sgd")
    with pytest.raises(ValueError, match="There are no labels"):
        trainer.fit(images(rng), verbose=0)
