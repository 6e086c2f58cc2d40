"""Raw images and their labels in `fit`, `evaluate` and `predict`: converted, or refused before
anything is compiled.
"""

import keras
import numpy as np
import pytest
from PIL import Image

from keras_deit.layers import DeiTImageConverter
from tests.conftest import BACKEND
from tests.helpers import images, numpy, raises, raw_images
from tests.models.test_deit_image_classifier import LOSS, tiny_classifier


def test_raw_arrays_in_fit_evaluate_and_predict(rng):
    classifier = tiny_classifier()
    classifier.compile("adam", **LOSS)
    # Few sizes of batches: JAX compiles the conversion for each.
    x, y = raw_images(rng, 12), rng.integers(0, 5, 12)
    weights = np.ones(12, "float32")
    history = classifier.fit(
        x, y, batch_size=8, epochs=2, validation_split=0.34, sample_weight=weights, verbose=0
    )
    assert set(history.history) == {"loss", "accuracy", "val_loss", "val_accuracy"}
    history = classifier.fit(
        x,
        y,
        batch_size=8,
        validation_data=(x[:8], y[:8]),
        class_weight={i: 1.0 for i in range(5)},
        verbose=0,
    )
    expected = classifier(classifier.preprocessor(x))
    np.testing.assert_allclose(
        classifier.predict(x, batch_size=8, verbose=0), numpy(expected), atol=1e-5
    )
    np.testing.assert_allclose(classifier.predict_on_batch(x), numpy(expected), atol=1e-5)
    results = classifier.evaluate(x, y, batch_size=8, verbose=0, return_dict=True)
    assert results["accuracy"] == pytest.approx((numpy(expected).argmax(-1) == y).mean())
    assert classifier.test_on_batch(x, y, return_dict=True)["accuracy"] == pytest.approx(
        results["accuracy"]
    )
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
    np.testing.assert_allclose(
        classifier.predict(dataset, verbose=0), classifier.predict(x, verbose=0), atol=1e-5
    )


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


def test_files_images_of_pillow_and_arrays_of_different_sizes(rng, tmp_path):
    classifier = tiny_classifier()
    first, second, third = (
        raw_images(rng, 1, shape)[0] for shape in ((20, 30, 3), (15, 40, 3), (33, 21, 3))
    )
    expected = [numpy(classifier(classifier.preprocessor(x[None]))) for x in (first, second, third)]
    file = tmp_path / "a.png"
    Image.fromarray(first).save(file)
    for one in (file, str(file), Image.fromarray(first), [file], (first,)):
        np.testing.assert_allclose(classifier.predict(one, verbose=0), expected[0], atol=1e-5)
    mixed = [file, Image.fromarray(second), third]
    np.testing.assert_allclose(
        classifier.predict(mixed, batch_size=2, verbose=0), np.concatenate(expected), atol=1e-5
    )


def test_files_are_gray_for_a_gray_model_and_channels_first_for_such_a_model(rng, tmp_path):
    file, image = tmp_path / "a.png", Image.fromarray(raw_images(rng, 1)[0])
    image.save(file)
    gray = tiny_classifier(
        {"image_shape": (12, 32, 1)}, preprocessor=DeiTImageConverter((12, 32), mean=0.5, std=0.5)
    )
    expected = gray.predict(np.asarray(image.convert("L"))[None, ..., None], verbose=0)
    np.testing.assert_allclose(gray.predict(file, verbose=0), expected, atol=1e-5)
    if BACKEND == "tensorflow":
        return  # has no convolution of channels_first on a processor
    converter = DeiTImageConverter((12, 32), data_format="channels_first")
    first = tiny_classifier(
        {"image_shape": (3, 12, 32), "data_format": "channels_first"}, preprocessor=converter
    )
    expected = first.predict(np.asarray(image).transpose(2, 0, 1)[None], verbose=0)
    np.testing.assert_allclose(
        first.predict([file, image], verbose=0), expected.repeat(2, 0), atol=1e-5
    )


def test_pictures_that_cannot_be_read(rng, tmp_path, bad_and_good):
    classifier = bad_and_good
    good = tmp_path / "a.png"
    Image.fromarray(raw_images(rng, 1)[0]).save(good)
    with raises(f"There is no file {tmp_path}/no.jpg. Give the name of an image."):
        classifier.predict([good, tmp_path / "no.jpg"])
    with raises(
        f"{tmp_path} is a directory. Give the images in it, such as "
        f"`sorted(pathlib.Path('{tmp_path}').iterdir())`."
    ):
        classifier.predict(tmp_path)
    with raises("Give one image at least. Received: an empty list"):
        classifier.predict([])
    with raises(
        "A list holds images: paths, images of Pillow, or arrays (height, width, 3). Received: int "
        "in it",
        kind=TypeError,
    ):
        classifier.predict([good, 3])
    for shape in ((20, 30), (4, 20, 30, 3), (20, 30, 1)):
        with raises(
            "Arrays in a list are one image each, (height, width, 3); a batch is one array. "
            f"Received: an array of shape {shape}"
        ):
            classifier.predict([good, np.zeros(shape, "uint8")])
    with pytest.warns(UserWarning, match="Raw images have levels from 0 to 255"):
        classifier.predict([np.full((20, 30, 3), 0.5, "float32")], verbose=0)
    with pytest.raises(
        ValueError,
        match="Only a model with a preprocessor reads files and images of Pillow. Give it one,",
    ):
        tiny_classifier(preprocessor=None).predict([str(good)])
    with raises(
        "Files and images of Pillow are read in gray or RGB, and the model takes 2 channels. Give "
        "arrays (height, width, 2)."
    ):
        tiny_classifier(
            {"image_shape": (12, 32, 2)},
            preprocessor=DeiTImageConverter((12, 32), mean=0.5, std=0.5),
        ).predict(good)


def test_raw_images_from_a_generator(rng):
    classifier = tiny_classifier()
    classifier.compile("adam", **LOSS)
    x, y = raw_images(rng, 12), rng.integers(0, 5, 12)

    def batches(*arrays, passes=1):
        for _ in range(passes):
            for start in (0, 4, 8):
                yield tuple(array[start : start + 4] for array in arrays)

    seen = []
    count = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: seen.append(batch)
    )
    classifier.fit(
        batches(x, y, passes=9),
        epochs=2,
        steps_per_epoch=3,
        validation_data=batches(x, y, passes=9),
        validation_steps=3,
        callbacks=[count],
        verbose=0,
    )
    assert seen == [0, 1, 2, 0, 1, 2]
    expected = classifier.predict(x, verbose=0)
    # Every batch is there, the first, which was looked at, too.
    np.testing.assert_allclose(
        classifier.predict(batches(x), steps=3, verbose=0), expected, atol=1e-5
    )
    results = classifier.evaluate(batches(x, y), steps=3, verbose=0, return_dict=True)
    assert results["accuracy"] == pytest.approx((expected.argmax(-1) == y).mean())
    without = tiny_classifier(preprocessor=None)
    converted = numpy(classifier.preprocessor(x))
    np.testing.assert_allclose(
        without.predict(batches(converted), steps=3, verbose=0),
        without.predict(converted, verbose=0),
        atol=1e-5,
    )


def test_raw_images_from_a_loader_of_pytorch(rng):
    data = pytest.importorskip("torch.utils.data")
    import torch

    classifier = tiny_classifier()
    classifier.compile("adam", **LOSS)
    x, y = raw_images(rng, 10), rng.integers(0, 5, 10)
    dataset = data.TensorDataset(torch.as_tensor(x), torch.as_tensor(y))
    shuffled = data.DataLoader(dataset, batch_size=4, shuffle=True)
    in_order = data.DataLoader(dataset, batch_size=4)
    seen = []
    count = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: seen.append(batch)
    )
    classifier.fit(shuffled, epochs=2, validation_data=in_order, callbacks=[count], verbose=0)
    assert seen == [0, 1, 2, 0, 1, 2]
    expected = classifier.predict(x, verbose=0)
    np.testing.assert_allclose(classifier.predict(in_order, verbose=0), expected, atol=1e-5)
    results = classifier.evaluate(in_order, verbose=0, return_dict=True)
    assert results["accuracy"] == pytest.approx((expected.argmax(-1) == y).mean())
    images_alone = data.DataLoader(torch.as_tensor(x), batch_size=4)
    np.testing.assert_allclose(classifier.predict(images_alone, verbose=0), expected, atol=1e-5)

    class Stream(data.IterableDataset):
        def __iter__(self):
            return iter(zip(torch.as_tensor(x), torch.as_tensor(y)))

    of_unknown_length = data.DataLoader(Stream(), batch_size=4)
    np.testing.assert_allclose(
        classifier.predict(of_unknown_length, steps=3, verbose=0), expected, atol=1e-5
    )
    wrong = data.DataLoader(torch.as_tensor(x.transpose(0, 3, 1, 2).copy()), batch_size=4)
    with pytest.raises(
        ValueError, match=r"Images must come in batches of shape \(batch, height, width, 3\)."
    ):
        classifier.predict(wrong)
    with pytest.raises(
        ValueError, match="Labels must be whole numbers from 0 to 4, the classes of the model."
    ):
        classifier.fit(
            data.DataLoader(
                data.TensorDataset(torch.as_tensor(x), torch.as_tensor(y + 5)), batch_size=4
            )
        )


def test_a_source_that_cannot_be_converted(rng):
    classifier = tiny_classifier()
    classifier.compile()
    expected = (
        "With a preprocessor attached, images come as an array, a tf.data.Dataset, a "
        "keras.utils.PyDataset, a DataLoader of PyTorch or a "
        "generator, and in `predict` as paths and images of Pillow, too. For anything else, call "
        "`preprocessor(images)` in your own "
        "pipeline and use a classifier with `preprocessor=None`. Received: "
    )
    with raises(expected + "list", kind=TypeError):
        classifier.fit(["cat.jpg", "dog.jpg"], np.array([0, 1]))
    with raises(expected + "map", kind=TypeError):
        classifier.predict(map(np.asarray, raw_images(rng)))


def test_data_that_does_not_fit_together(rng):
    import tensorflow as tf

    classifier = tiny_classifier()
    classifier.compile("adam", **LOSS)
    x = raw_images(rng, 6)
    with raises(
        "Images, targets and sample weights must be as many. Received: (6, 20, 30, 3), (8,), None"
    ):
        classifier.fit(x, np.zeros(8), verbose=0)
    with raises(
        "Images, targets and sample weights must be as many. Received: (6, 20, 30, 3), (6,), (7,)"
    ):
        classifier.evaluate(x, np.zeros(6), sample_weight=np.ones(7), verbose=0)
    dataset = tf.data.Dataset.from_tensor_slices((x, np.zeros(6))).batch(2)
    with raises(
        "A dataset brings its own targets and sample weights: yield (images, y) or (images, y, "
        "sample_weight), and leave `y` "
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
    """One classifier for all that is refused: on JAX an error in a step would cost it the
    weights.
    """
    return tiny_classifier()


@pytest.mark.parametrize(
    ("shape", "advice"),
    [
        ((20, 30, 3), None),
        ((6, 20, 30), None),
        ((), None),
        (
            (2, 20, 30, 1),
            "Convert the images, or load the model for theirs, with another `image_shape`.",
        ),
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
        "For one image give `images[None]`, for a dataset `dataset.batch(32)`, and keep the axis "
        "of the channels, also of one."
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
            classifier.fit(
                tf.data.Dataset.from_tensor_slices((bad, np.zeros(shape[0], int))).batch(2)
            )
        for source in (OneBatch(bad, y), (batch for batch in [(bad, y)])):
            with raises(f"{message}{shape}"):
                classifier.predict(source)
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
        "Images must come in batches of shape (batch, 3, height, width). Convert the images, or "
        "load the model for theirs, with another "
        "`image_shape`. Received: images of shape (4, 20, 30, 3)"
    ):
        classifier.predict(raw_images(rng))


NOT_INDICES = "Labels must be whole numbers from 0 to 4, the classes of the model. Count the classes from 0, or give the model as many."


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
            "Labels must be numbers. Give the index of each class, from 0 to 4. Received: labels "
            "of dtype <U3",
        ),
        (
            "indices",
            np.eye(5)[:4],
            "The loss takes indices of classes, (batch,). For these labels, compile with "
            "`loss=keras.losses.CategoricalCrossentropy(from_logits=True)`. Received: labels of "
            "shape (4, 5)",
        ),
        (
            "name",
            np.zeros((4, 2)),
            "The loss takes indices of classes, (batch,). Give the labels that shape. Received: "
            "labels of shape (4, 2)",
        ),
        (
            "one-hot",
            [0, 1, 2, 3],
            "The loss takes a value for each class, (batch, 5). For these labels, compile with "
            "`loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True)`. Received: labels "
            "of shape (4,)",
        ),
        (
            "one-hot",
            2 * np.eye(5)[:4],
            "Labels must be values from 0 to 1. Received: labels from 0.0 to 2.0",
        ),
        (
            "indices",
            None,
            "There are no labels to learn from or to compare with: give `y`, or a dataset of "
            "(images, labels).",
        ),
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
    sources = [
        lambda: (x, labels),
        lambda: (OneBatch(*of_batch),),
        lambda: ((batch for batch in [of_batch]),),
    ]
    if "of shape" in message or y is None:  # of tf.data nothing else is known before
        sources.append(lambda: (tf.data.Dataset.from_tensors(of_batch),))
    for source in sources:
        for method in (classifier.fit, classifier.evaluate):
            with raises(message):
                method(*source())
    with raises(message):
        classifier.fit(
            x, np.eye(5)[:4] if loss == "one-hot" else np.zeros(4), validation_data=(x, labels)
        )
    assert np.isfinite(classifier.predict(x, verbose=0)).all()


def test_labels_that_fit(rng):
    import tensorflow as tf

    classifier, x = tiny_classifier(), raw_images(rng)
    fitting = [
        (
            keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1),
            [0, -1, 4, 4],
        ),
        ("sparse_categorical_crossentropy", tf.constant([[0], [1], [4], [4]])),
        (keras.losses.CategoricalCrossentropy(from_logits=True), [[0, 0, 0.7, 0.3000001, 0]] * 4),
        (keras.losses.CategoricalCrossentropy(from_logits=True), keras.ops.ones((4, 5))),
        ("mse", np.full((4, 5), -3.0)),  # another loss takes what it will
    ]
    classifier._checked(x)  # without a loss, labels do not matter
    for loss, labels in fitting:
        classifier.compile("sgd", loss)
        classifier._checked(x, labels)
    unknown = tf.data.Dataset.from_generator(lambda: [], (tf.uint8, tf.int32))
    classifier.compile("sgd", **LOSS)
    classifier._checked(unknown)
    one_class = tiny_classifier(num_classes=1, labels=None)
    one_class.compile("sgd", "binary_crossentropy")
    one_class._checked(x, [0, 1, 1, 0])


@pytest.mark.parametrize("source", ["array", "tensor", "PyDataset"])
def test_images_that_were_scaled_already_get_a_warning(source, rng):
    classifier = tiny_classifier()
    scaled = rng.uniform(-1, 1, size=(4, 20, 30, 3)).astype("float32")
    scaled[0, 0, 0] = -1, 1, 1
    as_source = {"array": np.asarray, "tensor": keras.ops.convert_to_tensor, "PyDataset": OneBatch}[
        source
    ]
    with pytest.warns(UserWarning) as caught:
        classifier.predict(as_source(scaled), verbose=0)
    # Keras has some of NumPy
    ours = [warning for warning in caught if warning.category is UserWarning]
    assert [str(warning.message) for warning in ours] == [
        "Raw images have levels from 0 to 255, and these have none above 1, as if they were scaled "
        "already. Give them as they were: "
        "`255 * images` if they are from 0 to 1, `127.5 * (images + 1)` if they are from -1 to 1. "
        "Received: levels from -1 to 1"
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
