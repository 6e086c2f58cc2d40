"""Raw images from arrays, datasets, loaders and generators, in `fit`, `evaluate` and `predict`."""

import keras
import numpy as np
import pytest

from tests.helpers import images, numpy, raw_images
from tests.models.tiny import LOSS, tiny_classifier

pytestmark = pytest.mark.backend


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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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
    with pytest.raises(ValueError, match=r"Images must have shape \(batch, height, width, 3\)."):
        classifier.predict(wrong)
    with pytest.raises(
        ValueError,
        match="Labels must be whole numbers from 0 to 4, the class indices of the model.",
    ):
        classifier.fit(
            data.DataLoader(
                data.TensorDataset(torch.as_tensor(x), torch.as_tensor(y + 5)), batch_size=4
            )
        )


@pytest.mark.slow
def test_raw_images_from_grain(rng):
    grain = pytest.importorskip("grain")
    classifier = tiny_classifier()
    classifier.compile("adam", **LOSS)
    x, y = raw_images(rng, 8), rng.integers(0, 5, 8)
    pairs = grain.MapDataset.source(list(zip(x, y)))
    in_order = pairs.batch(4)
    # Keras knows no lengths of grain's datasets and warns at their end, unless it is told the steps.
    classifier.fit(
        pairs.shuffle(seed=1).repeat().batch(4).to_iter_dataset(),
        steps_per_epoch=3,
        epochs=2,
        validation_data=in_order,
        validation_steps=2,
        verbose=0,
    )
    assert classifier.optimizer.iterations == 6
    expected = classifier.predict(x, verbose=0)
    np.testing.assert_allclose(
        classifier.predict(in_order, steps=2, verbose=0), expected, atol=1e-5
    )
    results = classifier.evaluate(in_order, steps=2, verbose=0, return_dict=True)
    assert results["accuracy"] == pytest.approx((expected.argmax(-1) == y).mean())
    wrong = grain.MapDataset.source(list(x.transpose(0, 3, 1, 2))).batch(4)
    with pytest.raises(ValueError, match=r"Images must have shape \(batch, height, width, 3\)."):
        classifier.predict(wrong)


@pytest.mark.slow
def test_without_a_preprocessor_the_methods_are_those_of_keras(rng):
    classifier = tiny_classifier(preprocessor=None)
    classifier.compile("adam", **LOSS)
    x, y = images(rng, 10), rng.integers(0, 5, 10)
    classifier.fit(x, y, validation_split=0.2, verbose=0)
    np.testing.assert_allclose(classifier.predict(x, verbose=0), numpy(classifier(x)), atol=1e-5)
