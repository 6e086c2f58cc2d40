import keras
import numpy as np
import pytest

from keras_deit.layers import DeiTImageConverter
from keras_deit.losses import HardDistillationLoss, SoftDistillationLoss
from keras_deit.models import DeiTDistiller, DeiTImageClassifier
from tests.conftest import BACKEND
from tests.helpers import images, numpy, raises, randomize, raw_images, same_arrays, tiny_backbone
from tests.helpers import tiny_classifier as any_tiny_classifier

JIT = BACKEND == "jax"  # where its lack takes longer
CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def tiny_student(rng=None, **overrides):
    student = any_tiny_classifier({"num_layers": 1}, **{"preprocessor": None, **overrides})
    return student if rng is None else randomize(student, rng)


def tiny_teacher(rng, shape=(12, 32, 3), classes=5):
    """With batch normalization and dropout, which show whether it runs in inference mode."""
    layers = keras.layers
    teacher = keras.Sequential(
        [
            keras.Input(shape),
            layers.AveragePooling2D(4),
            layers.Flatten(),
            layers.BatchNormalization(),
            layers.Dropout(0.5),
            layers.Dense(classes),
        ],
        name="teacher",
    )
    randomize(teacher, rng)
    teacher.layers[2].moving_variance.assign(rng.uniform(0.5, 2.0, 72))
    return teacher


def log_softmax(x):
    x = x.astype("float64") - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def cross_entropy(logits, labels):
    return -log_softmax(logits)[np.arange(len(labels)), labels]


def kl_div_of_official_code(student, teacher, temperature):
    """losses.py of facebookresearch/deit: both as log-probabilities, summed, times T * T, by the
    number of elements.
    """
    log_p, log_q = log_softmax(teacher / temperature), log_softmax(student / temperature)
    return (np.exp(log_p) * (log_p - log_q)).sum() * temperature**2 / student.size


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_losses_are_the_formulas(temperature, rng):
    student, teacher = (rng.normal(size=(6, 5)).astype("float32") for _ in range(2))
    hard = HardDistillationLoss()(teacher, student)
    np.testing.assert_allclose(
        numpy(hard), cross_entropy(student, teacher.argmax(-1)).mean(), atol=1e-6
    )
    official = kl_div_of_official_code(student, teacher, temperature)
    np.testing.assert_allclose(
        numpy(SoftDistillationLoss(temperature, "mean")(teacher, student)), official, atol=1e-6
    )
    np.testing.assert_allclose(
        numpy(SoftDistillationLoss(temperature)(teacher, student)), official * 5, rtol=1e-6
    )


def test_losses_stand_large_logits_of_half_precision():
    logits = np.asarray([[6e4, -6e4, 0.0]], "float16")
    for loss in (HardDistillationLoss(), SoftDistillationLoss(1.0)):
        assert np.isfinite(numpy(loss(logits, -logits)))
    same = SoftDistillationLoss(2.0)
    np.testing.assert_allclose(numpy(same(logits, logits)), 0.0, atol=1e-6)
    assert SoftDistillationLoss.from_config(same.get_config()).get_config() == same.get_config()


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


@pytest.mark.parametrize("kind", ["arrays", "tf.data", "PyDataset"])
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
    with pytest.raises(ValueError, match="There are no labels to learn from"):
        distiller.fit(
            tf.data.Dataset.from_tensor_slices(images(rng)).batch(2), shuffle=False, verbose=0
        )


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


@pytest.mark.skipif(BACKEND == "torch", reason="has no XLA")
def test_trains_compiled(rng):
    distiller = DeiTDistiller(tiny_student(rng), tiny_teacher(rng), "soft")
    distiller.compile("adamw", jit_compile=True)
    first, *_, last = distiller.fit(
        images(rng), np.asarray([0, 1, 2, 0]), epochs=5, verbose=0
    ).history["loss"]
    assert last < first


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
        message = "There is no teacher to learn from"
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


def test_wrong_arguments_are_refused(rng):
    student, teacher = tiny_student(), tiny_teacher(rng)
    with raises("`student` must be a `DeiTImageClassifier`. Received: student=None"):
        DeiTDistiller(None, teacher)
    with raises(
        "`student` must have a distillation head, which learns from the teacher. Use a backbone "
        "with "
        "`use_distillation_token=True`, or `DeiTImageClassifier.from_preset(name, "
        "use_distillation_token=True)`. "
        "Received: a student with one head"
    ):
        DeiTDistiller(tiny_student(use_distillation_head=False), teacher)
    with raises(
        "`student` must give logits: use `activation=None`. Received: activation='softmax'"
    ):
        DeiTDistiller(tiny_student(activation="softmax"), teacher)
    with raises(
        "`distillation_type` must be one of 'hard', 'soft'. Received: distillation_type='warm'"
    ):
        DeiTDistiller(student, teacher, "warm")
    with raises("`alpha` must be a share in [0, 1]. Received: alpha=1.5"):
        DeiTDistiller(student, teacher, alpha=1.5)
    with raises("`temperature` must be a number above 0. Received: temperature=0"):
        DeiTDistiller(student, teacher, temperature=0)
    with raises("`kl_reduction` must be one of 'batchmean', 'mean'. Received: kl_reduction='sum'"):
        DeiTDistiller(student, teacher, kl_reduction="sum")
    with raises(
        "`teacher` must be a Keras model or a callable of images. Received: teacher='resnet'"
    ):
        DeiTDistiller(student, "resnet")
    with raises(
        "`teacher` must be built, as a trained one is: call it on a batch of images first."
    ):
        DeiTDistiller(student, keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(5)]))
    with raises(
        "With `save_teacher=True` the teacher must be a Keras model, which can be saved. Received: "
        "teacher=<built-in function max>"
    ):
        DeiTDistiller(student, max, save_teacher=True)
    with raises(
        "The teacher has a preprocessor and the student has none, so that no images suit both. "
        "Give the student one, and both "
        "take raw images; or give the teacher `preprocessor=None`, and both take the same "
        "converted images."
    ):
        DeiTDistiller(student, any_tiny_classifier())
    with raises(
        "The teacher must give logits of shape (batch, 5), as many classes as the student has. "
        "Received: shape (None, 7)"
    ):
        DeiTDistiller(student, tiny_teacher(rng, classes=7))
    distiller = DeiTDistiller(student, teacher)
    with raises(
        "`loss` must take logits, such as "
        "`keras.losses.SparseCategoricalCrossentropy(from_logits=True)`. "
        "Received: loss='sparse_categorical_crossentropy'"
    ):
        distiller.compile("sgd", "sparse_categorical_crossentropy")
    with raises("`loss` is one loss, of the class head's logits. Received: loss={'class': 'mse'}"):
        distiller.compile("sgd", {"class": "mse"})


def test_data_that_do_not_fit_are_refused_before_the_first_step(rng):
    x, y = images(rng), np.asarray([0, 1, 2, 0])
    student = tiny_student()
    before = [numpy(weight) for weight in student.weights]

    usual_teacher = tiny_teacher(rng)

    def fit(message, x=x, y=y, teacher=usual_teacher, loss=CROSS_ENTROPY):
        distiller = DeiTDistiller(student, teacher)
        distiller.compile(keras.optimizers.SGD(1.0), loss, jit_compile=JIT)
        with pytest.raises(ValueError, match=message):
            distiller.fit(x, y, verbose=0)

    fit(
        "Labels must be whole numbers from 0 to 4, .* Received: labels from 0 to 5",
        y=np.asarray([0, 5, 2, 0]),
    )
    fit(
        "Labels must be whole numbers from 0 to 4, .* Received: labels from -1 to 2",
        y=np.asarray([0, -1, 2, 0]),
    )
    fit(
        "Images and teacher logits must be finite. Received: 1 values that are NaN or infinite",
        x=np.where(np.arange(x.size) == 7, np.nan, x.ravel()).reshape(x.shape),
    )
    fit(
        r"The loss takes indices of classes, \(batch,\). For these labels, compile with "
        r"`loss=keras.losses.CategoricalCrossentropy\(from_logits=True\)`",
        y=np.eye(5, dtype="float32")[y],
    )
    fit(
        r"The loss takes a value for each class, \(batch, 5\). For these labels, compile with "
        r"`loss=keras.losses.SparseCategoricalCrossentropy\(from_logits=True\)`",
        loss=keras.losses.CategoricalCrossentropy(from_logits=True),
    )
    fit("There are no labels to learn from or to compare with: give `y`", y=None)
    fit(
        "Inputs are images, or a dictionary of \"images\" and one of 'teacher_images', "
        "'teacher_logits'",
        x={"image": x},
    )
    same_arrays(before, student.weights)
