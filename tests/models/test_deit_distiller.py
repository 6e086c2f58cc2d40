"""How the distiller trains, evaluates and saves."""

import keras
import numpy as np
import pytest

from keras_deit.models import DeiTDistiller
from tests.conftest import BACKEND
from tests.helpers import images, numpy, same_arrays
from tests.models.tiny import (
    CROSS_ENTROPY,
    JIT,
    cross_entropy,
    kl_div_of_official_code,
    tiny_student,
    tiny_teacher,
)

pytestmark = pytest.mark.backend


@pytest.mark.parametrize("distillation_type", ["hard", "soft"])
def test_a_step_reports_both_losses_and_moves_by_their_sum(distillation_type, rng):
    student, teacher = tiny_student(rng), tiny_teacher(rng)
    x, y, weights = (
        images(rng),
        np.asarray([0, 4, 2, 1]),
        np.asarray([1.0, 0.5, 2.0, 0.0], "float32"),
    )
    logits = {
        name: numpy(value)
        for name, value in keras.Model(student.input, student.token_logits)(x).items()
    }
    taught = numpy(teacher(x, training=False))
    distiller = DeiTDistiller(student, teacher, distillation_type, alpha=0.3, temperature=2.0)
    distiller.compile(
        keras.optimizers.SGD(0.0), CROSS_ENTROPY, metrics=["accuracy"], jit_compile=JIT
    )
    logs = distiller.fit(x, y, sample_weight=weights, batch_size=4, verbose=0).history
    class_loss = (weights * cross_entropy(logits["class"], y)).mean()
    if distillation_type == "hard":
        distillation_loss = (
            weights * cross_entropy(logits["distillation"], taught.argmax(-1))
        ).mean()
    else:
        of_each = [
            kl_div_of_official_code(logits["distillation"][i : i + 1], taught[i : i + 1], 2.0) * 5
            for i in range(len(x))
        ]
        distillation_loss = (weights * of_each).mean()
    np.testing.assert_allclose(logs["class_loss"][0], class_loss, rtol=1e-5)
    np.testing.assert_allclose(logs["distillation_loss"][0], distillation_loss, rtol=1e-5)
    np.testing.assert_allclose(
        logs["loss"][0], 0.7 * class_loss + 0.3 * distillation_loss, rtol=1e-5
    )


def test_evaluate_is_of_the_mean_of_the_heads_and_asks_no_teacher(rng):
    student = tiny_student(rng)
    x, y = images(rng, batch=6), np.asarray([0, 4, 2, 1, 3, 3])
    distiller = DeiTDistiller(student, None)
    distiller.compile(
        "sgd", metrics=["accuracy", keras.metrics.SparseTopKCategoricalAccuracy(2, name="top2")]
    )
    logs = distiller.evaluate(x, y, verbose=0, return_dict=True)
    logits = numpy(student(x))
    assert sorted(logs) == ["accuracy", "loss", "top2"]
    np.testing.assert_allclose(logs["loss"], cross_entropy(logits, y).mean(), rtol=1e-5)
    np.testing.assert_allclose(logs["accuracy"], (logits.argmax(-1) == y).mean(), rtol=1e-6)
    predicted = distiller.predict(x, verbose=0)
    assert sorted(predicted) == ["class", "distillation", "mean"]
    np.testing.assert_allclose(predicted["mean"], logits, atol=1e-5)


def test_teacher_and_student_run_once_a_step_and_the_teacher_stays(rng, monkeypatch):
    teacher, student = tiny_teacher(rng), tiny_student(rng)
    before = [numpy(weight) for weight in teacher.weights]
    calls = []

    class Counting(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.teacher = teacher

        def call(self, inputs, training=None):
            calls.append(training)
            return self.teacher(inputs, training=training)

    counting = Counting()
    counting(images(rng))
    distiller = DeiTDistiller(student, counting)
    runs, call = [], student.head.call
    monkeypatch.setattr(student.head, "call", lambda inputs: (runs.append(1), call(inputs))[1])
    distiller.compile("sgd", run_eagerly=True)
    distiller.fit(images(rng), np.zeros(4, int), batch_size=2, verbose=0)
    calls.clear()  # of what Keras builds before the first step
    runs.clear()
    distiller.fit(images(rng), np.zeros(4, int), batch_size=2, verbose=0)
    assert calls == [False, False]
    assert len(runs) == 2
    same_arrays(before, teacher.weights)
    assert not teacher.trainable


@pytest.mark.slow
def test_class_weights_and_mixed_labels(rng):
    distiller = DeiTDistiller(tiny_student(rng), tiny_teacher(rng))
    distiller.compile("sgd", jit_compile=JIT)
    logs = distiller.fit(
        images(rng), np.asarray([0, 1, 1, 0]), class_weight={0: 0.0, 1: 0.0}, verbose=0
    ).history
    assert logs["loss"] == [0.0]
    distiller.compile(
        "sgd",
        keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1),
        jit_compile=JIT,
    )
    mixed = rng.dirichlet(np.ones(5), size=4).astype("float32")
    assert np.isfinite(distiller.fit(images(rng), mixed, verbose=0).history["loss"]).all()


@pytest.mark.slow
@pytest.mark.skipif(BACKEND == "torch", reason="has no XLA")
def test_trains_compiled(rng):
    distiller = DeiTDistiller(tiny_student(rng), tiny_teacher(rng), "soft")
    distiller.compile("adamw", jit_compile=True)
    first, *_, last = distiller.fit(
        images(rng), np.asarray([0, 1, 2, 0]), epochs=5, verbose=0
    ).history["loss"]
    assert last < first


@pytest.mark.slow
@pytest.mark.parametrize("save_teacher", [False, True])
def test_saves_and_loads(save_teacher, rng, tmp_path):
    student, teacher = tiny_student(rng), tiny_teacher(rng)
    x, y = images(rng), np.asarray([0, 1, 2, 0])
    distiller = DeiTDistiller(student, teacher, "soft", 0.2, 3.0, "mean", save_teacher)
    distiller.compile(
        keras.optimizers.SGD(0.1, momentum=0.9), metrics=["accuracy"], jit_compile=JIT
    )
    distiller.fit(x, y, verbose=0)
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras.saving.load_model(tmp_path / "distiller.keras")
    assert {**loaded.get_config(), "student": None, "teacher": None} == {
        **distiller.get_config(),
        "student": None,
        "teacher": None,
    }
    same_arrays(loaded.student.weights, student.weights)
    same_arrays(loaded.optimizer.variables, distiller.optimizer.variables)
    assert len(loaded.weights) == len(student.weights) + save_teacher * len(teacher.weights)
    if not save_teacher:
        message = "The distiller has no teacher"
        with pytest.raises(ValueError, match=message):
            loaded.fit(x, y, verbose=0)
        loaded.set_teacher(teacher)
    for model in (distiller, loaded):
        model.fit(x, y, verbose=0)
    for a, b in zip(loaded.student.get_weights(), student.get_weights()):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_files_of_weights_leave_the_teacher_out(rng, tmp_path):
    """BackupAndRestore and ModelCheckpoint write one each epoch."""
    import h5py

    teacher = keras.Sequential(
        [
            keras.Input((12, 32, 3)),
            keras.layers.Flatten(),
            keras.layers.Dense(5, name="of_the_teacher"),
        ]
    )
    DeiTDistiller(tiny_student(), teacher).save_weights(tmp_path / "a.weights.h5")
    names = []
    with h5py.File(tmp_path / "a.weights.h5") as file:
        file.visititems(lambda name, item: names.append((name, getattr(item, "shape", None))))
    assert any(shape == (8, 24) for _, shape in names)  # of the student's attention
    assert not any(shape == (1152, 5) for _, shape in names)
