"""The teachers and the data that the distiller takes."""

import keras
import numpy as np
import pytest

from keras_deit.layers import DeiTImageConverter
from keras_deit.models import DeiTDistiller, DeiTImageClassifier
from tests.helpers import images, numpy, randomize, raw_images, tiny_backbone
from tests.models.tiny import JIT, cross_entropy, tiny_student, tiny_teacher

pytestmark = pytest.mark.backend


@pytest.mark.slow
def test_logits_computed_before_teach_as_the_teacher_does(rng):
    teacher = tiny_teacher(rng)
    x, y = images(rng, batch=6), np.asarray([0, 4, 2, 1, 3, 3])
    start = tiny_student(rng).get_weights()
    trained = []
    for given, data in (
        (teacher, x),
        (None, {"images": x, "teacher_logits": numpy(teacher(x, training=False))}),
    ):
        student = tiny_student()
        student.set_weights(start)
        distiller = DeiTDistiller(student, given, "soft")
        distiller.compile(keras.optimizers.SGD(0.1), jit_compile=JIT)
        distiller.fit(data, y, batch_size=3, epochs=2, shuffle=False, verbose=0)
        trained.append(student.get_weights())
    assert any(np.abs(a - b).max() > 1e-3 for a, b in zip(start, trained[0]))
    for a, b in zip(*trained):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.slow
def test_a_teacher_may_give_probabilities(rng):
    """As all of `keras.applications` do. Taken as logits, the best and the worst class would differ
    by one at most.
    """
    student, teacher = tiny_student(rng), tiny_teacher(rng)
    x, y = images(rng), np.asarray([0, 4, 2, 1])
    with_softmax = keras.Sequential([keras.Input((12, 32, 3)), teacher, keras.layers.Softmax()])
    probabilities = numpy(with_softmax(x))
    one_hot = np.eye(5, dtype="float32")[y]

    def distillation_loss(teacher, data):
        distiller = DeiTDistiller(student, teacher, "soft", temperature=2.0)
        distiller.compile(keras.optimizers.SGD(0.0), jit_compile=JIT)
        return distiller.fit(data, y, verbose=0).history["distillation_loss"][0]

    expected = distillation_loss(teacher, x)
    assert distillation_loss(with_softmax, x) == pytest.approx(expected, rel=1e-4)
    assert distillation_loss(
        lambda images: keras.ops.softmax(teacher(images, training=False)), x
    ) == pytest.approx(expected, rel=1e-4)
    computed_before = {"images": x, "teacher_logits": probabilities.astype("float16")}
    assert distillation_loss(None, computed_before) == pytest.approx(expected, rel=1e-2)
    # The logarithm of zero is as small as float32 has it: the Kullback-Leibler divergence is that
    # of a one-hot distribution.
    certain = distillation_loss(None, {"images": x, "teacher_logits": one_hot})
    logits = numpy(keras.Model(student.input, student.token_logits)(x)["distillation"])
    assert certain == pytest.approx(4 * cross_entropy(logits / 2, y).mean(), rel=1e-4)


@pytest.mark.parametrize(
    "kind", ["arrays", *(pytest.param(k, marks=pytest.mark.slow) for k in ("tf.data", "PyDataset"))]
)
def test_raw_images_are_converted_for_each(kind, rng):
    """The teacher is a classifier at another size, with other preprocessing."""
    teacher = randomize(
        DeiTImageClassifier(
            tiny_backbone(image_shape=(24, 16, 3), num_layers=1),
            5,
            preprocessor=DeiTImageConverter(
                (24, 16), mean=0.5, std=0.5, data_format="channels_last"
            ),
        ),
        rng,
    )
    student = tiny_student(
        rng, preprocessor=DeiTImageConverter((12, 32), data_format="channels_last")
    )
    x, y = raw_images(rng), np.asarray([0, 4, 2, 1])
    logits = keras.Model(student.input, student.token_logits)(student.preprocessor(x))
    taught = teacher.predict(x, verbose=0).argmax(-1)
    distiller = DeiTDistiller(student, teacher)
    distiller.compile(keras.optimizers.SGD(0.0), metrics=["accuracy"], jit_compile=JIT)
    if kind == "arrays":
        data = {"x": x, "y": y, "batch_size": 4}
    elif kind == "tf.data":
        tf = pytest.importorskip("tensorflow")
        data = {"x": tf.data.Dataset.from_tensor_slices((x, y)).batch(4)}
    else:

        class Batches(keras.utils.PyDataset):
            num_batches = 1

            def __getitem__(self, index):
                return x, y

        data = {"x": Batches()}
    logs = distiller.fit(**data, verbose=0).history
    expected = cross_entropy(numpy(logits["distillation"]), taught).mean()
    np.testing.assert_allclose(logs["distillation_loss"][0], expected, rtol=1e-4)
    expected = (student.predict(x, verbose=0).argmax(-1) == y).mean()
    np.testing.assert_allclose(
        distiller.evaluate(**data, verbose=0, return_dict=True)["accuracy"], expected, atol=1e-6
    )


def test_raw_images_with_logits_are_split_for_validation(rng):
    student = tiny_student(preprocessor=DeiTImageConverter((12, 32), data_format="channels_last"))
    x = {"images": raw_images(rng, 8), "teacher_logits": rng.normal(size=(8, 5)).astype("float32")}
    distiller = DeiTDistiller(student, None)
    distiller.compile("sgd", jit_compile=JIT)
    logs = distiller.fit(
        x, np.arange(8) % 5, validation_split=0.25, batch_size=3, verbose=0
    ).history
    assert sorted(logs) == ["class_loss", "distillation_loss", "loss", "val_loss"]
    expected = distiller.evaluate(x["images"][6:], np.asarray([1, 2]), verbose=0)
    np.testing.assert_allclose(logs["val_loss"][0], expected, rtol=1e-5)


def test_a_callable_takes_the_raw_images(rng):
    student = tiny_student(preprocessor=DeiTImageConverter((12, 32), data_format="channels_last"))
    seen = []

    def teacher(images):
        seen.append(images.shape)
        return keras.ops.one_hot(keras.ops.zeros(keras.ops.shape(images)[:1], "int32"), 5)

    distiller = DeiTDistiller(student, teacher)
    distiller.compile("sgd", jit_compile=JIT)
    distiller.fit(raw_images(rng), np.zeros(4, int), verbose=0)
    assert {tuple(shape)[1:] for shape in seen} == {(20, 30, 3)}


def test_a_teacher_of_a_class_of_its_own_and_a_dataset_without_labels(rng):
    class Teacher(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(5)

        def call(self, inputs):
            return self.dense(keras.ops.mean(inputs, axis=(1, 2)))

    teacher = Teacher()
    teacher(images(rng))
    distiller = DeiTDistiller(tiny_student(), teacher)
    distiller.compile("sgd", jit_compile=JIT)
    assert np.isfinite(
        distiller.fit(images(rng), np.zeros(4, int), verbose=0).history["distillation_loss"]
    ).all()
    tf = pytest.importorskip("tensorflow")
    with pytest.raises(ValueError, match="There are no labels. Use `y="):
        distiller.fit(
            tf.data.Dataset.from_tensor_slices(images(rng)).batch(2), shuffle=False, verbose=0
        )
