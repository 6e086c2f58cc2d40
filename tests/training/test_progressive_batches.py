"""Images that grow during a training are those of `training_batches` at each size."""

import keras
import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")

from keras_deit.layers import DeiTImageConverter  # noqa: E402
from keras_deit.training import Augmentation  # noqa: E402
from keras_deit.training.batches import training_batches  # noqa: E402
from keras_deit.training.progressive_batches import progressive_batches  # noqa: E402
from tests.helpers import raises, tiny_classifier  # noqa: E402
from tests.training.test_batches import assert_same, dataset_of  # noqa: E402

SIZES = ((8, 16), (12, 16), (16, 24))
CONVERTER = DeiTImageConverter((99, 99), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


def arrays(dataset, count):
    return [tuple(map(np.asarray, batch)) for batch in dataset.take(count)]


def growing(start=0, num_shards=1, shard=0):
    return progressive_batches(
        dataset_of(),
        Augmentation(),
        CONVERTER,
        5,
        6 // num_shards,
        SIZES,
        num_batches=7,
        start=start,
        num_shards=num_shards,
        shard=shard,
        seed=3,
    )


def test_each_size_has_its_share_and_the_last_goes_on():
    dataset = growing()
    assert dataset.element_spec[0].shape == (6, None, None, 3)
    assert dataset.cardinality() == tf.data.INFINITE_CARDINALITY
    found = arrays(dataset, 9)
    assert [batch[0].shape[1:3] for batch in found] == (
        [SIZES[0]] * 2 + [SIZES[1]] * 2 + [SIZES[2]] * 5
    )
    for number, (image_size, count) in {
        0: (SIZES[0], 2),
        2: (SIZES[1], 2),
        4: (SIZES[2], 5),
    }.items():
        sized = DeiTImageConverter(image_size, mean=CONVERTER.mean, std=CONVERTER.std)
        alone = training_batches(
            dataset_of(), Augmentation(), sized, 5, 6, seed=3, start=6 * number
        )
        assert_same(found[number : number + count], arrays(alone, count))


@pytest.mark.parametrize("seen", [1, 2, 3, 5, 8])
def test_they_resume_at_any_batch(seen):
    assert_same(arrays(growing(), 9)[seen:], arrays(growing(start=6 * seen), 9 - seen))


def test_processes_share_a_batch():
    whole = arrays(growing(), 5)
    parts = [arrays(growing(num_shards=2, shard=shard), 5) for shard in range(2)]
    for batch, *halves in zip(whole, *parts, strict=True):
        for index in (0, 1):
            together = np.stack([half[index] for half in halves], axis=1)
            np.testing.assert_array_equal(batch[index], together.reshape(batch[index].shape))


@pytest.mark.backend
@pytest.mark.slow
def test_a_model_of_any_size_trains_on_them():
    classifier = tiny_classifier(
        {"image_shape": (None, None, 3), "position_grid_size": (4, 3)}, preprocessor=None
    )
    classifier.compile("adam", "categorical_crossentropy", metrics=["accuracy"])
    history = classifier.fit(growing(), steps_per_epoch=3, epochs=3, shuffle=False, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    assert keras.ops.convert_to_numpy(classifier.optimizer.iterations) == 9


def test_wrong_arguments():
    common = (dataset_of(), Augmentation(), CONVERTER, 5, 6)
    with raises(
        "`image_sizes` must have at least one size, and at most one for each batch. Received: "
        "image_sizes=(), num_batches=7"
    ):
        progressive_batches(*common, (), 7)
    with raises(
        "`image_sizes` must have at least one size, and at most one for each batch. Received: "
        "image_sizes=((8, 16), (12, 16), (16, 24)), num_batches=2"
    ):
        progressive_batches(*common, SIZES, 2)
    with raises(
        "`image_sizes` must be several sizes, such as (128, 176, 224). Received: image_sizes=128"
    ):
        progressive_batches(*common, 128, 7)
    with raises("`start` must be a non-negative integer. Received: start=None"):
        progressive_batches(*common, SIZES, 7, start=None)
    with raises(
        "`start` must be a multiple of the batch size over all processes, 6. Received: start=5"
    ):
        progressive_batches(*common, SIZES, 7, start=5)
    with raises("`num_batches` must be a positive integer. Received: num_batches=0"):
        progressive_batches(*common, SIZES, 0)
