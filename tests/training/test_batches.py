"""Batches to train and to evaluate on: reproducible from any start, on any number of processes."""

import dataclasses

import keras
import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")

from keras_deit.layers import DeiTImageConverter  # noqa: E402
from keras_deit.models import DeiTDistiller  # noqa: E402
from keras_deit.training import RECIPES, Augmentation, batches  # noqa: E402
from tests.helpers import raises, tiny_classifier  # noqa: E402


def dataset_of(n=24, channels=3):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (n, 20, 30, channels)).astype("uint8")
    return tf.data.Dataset.from_tensor_slices((images, np.arange(n) % 5))


def batches_of(count, *args, **kwargs):
    found = batches.training_batches(dataset_of(), *args, 5, **kwargs)
    assert found.cardinality() == tf.data.INFINITE_CARDINALITY
    return [tuple(map(np.asarray, batch)) for batch in found.take(count)]


def assert_same(found, others):
    for batch, other in zip(found, others, strict=True):
        np.testing.assert_array_equal(batch[0], other[0])
        np.testing.assert_array_equal(batch[1], other[1])


def test_batches_follow_the_recipe_and_the_seed():
    recipe, converter = RECIPES["deit3_small"].augmentation, DeiTImageConverter((12, 16))
    found = batches_of(8, recipe, converter, batch_size=6, seed=3)
    images, labels = found[0]
    assert images.shape == (6, 12, 16, 3)
    assert images.dtype == labels.dtype == np.float32
    assert labels.shape == (6, 5)
    np.testing.assert_allclose(labels.sum(-1), 1.0, atol=1e-5)
    assert np.abs(images).max() < 3
    keras.utils.set_random_seed(0)
    assert_same(found, batches_of(8, recipe, converter, batch_size=6, seed=3))
    assert not np.array_equal(batches_of(1, recipe, converter, batch_size=6, seed=4)[0][0], images)


@pytest.mark.slow
@pytest.mark.parametrize("repeats", [1, 3])
def test_batches_resume_at_any_image(repeats):
    recipe, converter = RECIPES["deit3_small"].augmentation, DeiTImageConverter((12, 16))
    recipe = dataclasses.replace(recipe, repeats=repeats)
    found = batches_of(14, recipe, converter, batch_size=7)
    # In a pass of 24 images, in the next ones, in the middle of an image's copies
    for seen in (1, 5, 11):
        assert_same(
            found[seen:], batches_of(14 - seen, recipe, converter, batch_size=7, start=7 * seen)
        )


@pytest.mark.slow
def test_processes_share_the_images_of_a_batch():
    recipe, converter = (
        Augmentation(three_augment=True, erasing_rate=0.5),
        DeiTImageConverter((12, 16)),
    )
    whole = batches_of(5, recipe, converter, batch_size=6)
    shards = [
        batches_of(5, recipe, converter, batch_size=3, num_shards=2, shard=shard)
        for shard in range(2)
    ]
    for index, (images, labels) in enumerate(whole):
        for shard in range(2):
            np.testing.assert_array_equal(shards[shard][index][0], images[shard::2])
            np.testing.assert_array_equal(shards[shard][index][1], labels[shard::2])


def test_each_process_reads_only_its_images():
    files = tf.data.Dataset.range(240)
    was_read = []

    def read(index):
        tf.numpy_function(lambda index: was_read.append(int(index)), [index], [])
        return tf.zeros((20, 30, 3)), index % 5

    converter = DeiTImageConverter((12, 16))
    mine = batches.training_batches(
        files, Augmentation(), converter, 5, 6, 240, read, num_shards=2, shard=1
    )
    assert len(list(mine.take(10))) == 10
    # Half of this process' part of the first pass: several are read at once, so that some of the
    # second pass may overtake the last.
    was_read = was_read[:60]
    assert len(set(was_read)) == 60

    def numbered(index):
        return tf.zeros((9, 9, 3)) + tf.cast(index, tf.float32), 0

    other = batches.training_batches(
        files, Augmentation(), converter, 5, 6, 240, numbered, num_shards=2
    )
    images = np.concatenate([images[:, 0, 0, 0] for images, _ in other.take(20)])
    seen = set(np.round((images * converter.std[0] + converter.mean[0]) * 255).astype(int))
    assert len(seen) == 120
    assert not set(was_read) & seen


def test_each_pass_has_every_image_in_another_order():
    found = batches_of(8, Augmentation(), DeiTImageConverter((12, 16)), batch_size=6)
    orders = np.concatenate([labels for _, labels in found]).argmax(-1).reshape(2, 24)
    for order in orders:
        np.testing.assert_array_equal(np.bincount(order), [5, 5, 5, 5, 4])
    assert not np.array_equal(*orders)


def test_repeated_augmentation_repeats_images():
    (images, labels), *_ = found = batches_of(
        4, Augmentation(repeats=3), DeiTImageConverter((12, 16)), batch_size=6
    )
    labels = np.concatenate([batch[1] for batch in found]).argmax(-1).reshape(8, 3)
    assert (labels == labels[:, :1]).all()
    assert not np.array_equal(images[0], images[1])


@pytest.mark.slow
def test_gray_images_and_channels_first_train_a_distiller():
    student = tiny_classifier(
        {"image_shape": (12, 32, 1), "num_layers": 1},
        preprocessor=DeiTImageConverter((12, 32), mean=0.5, std=0.5),
    )
    converter = student.preprocessor
    recipe = Augmentation(erasing_rate=0.25, mixup_alpha=0.8, cutmix_alpha=1.0)
    found = batches.training_batches(dataset_of(channels=1), recipe, converter, 5, 6)
    student.preprocessor = None
    distiller = DeiTDistiller(
        student, lambda images: keras.ops.zeros((keras.ops.shape(images)[0], 5))
    )
    distiller.compile("sgd", RECIPES["deit"].build_loss())
    assert np.isfinite(
        distiller.fit(found, steps_per_epoch=4, shuffle=False, verbose=0).history["loss"]
    ).all()
    first = DeiTImageConverter((12, 32), mean=0.5, std=0.5, data_format="channels_first")
    assert batches.training_batches(dataset_of(channels=1), recipe, first, 5, 6).element_spec[
        0
    ].shape == (6, 1, 12, 32)


def test_errors_on_unsuitable_datasets():
    converter = DeiTImageConverter((12, 16))
    with pytest.raises(
        ValueError,
        match=r"`dataset` must have unbatched elements \(image, label\), with images of shape",
    ):
        batches.training_batches(dataset_of().batch(2), Augmentation(), converter, 5, 6)
    with raises(
        "RandAugment, 3-Augment and color jitter need images with 3 channels. Convert the images "
        "to RGB, or set their shape with `tf.ensure_shape`. Received: images of shape (20, 30, 1)"
    ):
        batches.training_batches(
            dataset_of(channels=1), RECIPES["deit"].augmentation, converter, 5, 6
        )
    with raises(
        "`dataset` must have a known length above 0. Set it with "
        "`dataset.apply(tf.data.experimental.assert_cardinality(length))`. Received: a dataset of "
        "cardinality -1"
    ):
        batches.training_batches(dataset_of().repeat(), Augmentation(), converter, 5, 6)


@pytest.mark.parametrize("num_shards", [1, 2])
def test_evaluation_batches_have_one_size_and_every_image_once(num_shards):
    converter = DeiTImageConverter((12, 16))
    images = np.stack([image for image, _ in dataset_of().as_numpy_iterator()])
    expected = keras.ops.convert_to_numpy(converter(images))
    seen = []
    for shard in range(num_shards):
        found = batches.evaluation_batches(
            dataset_of(), converter, 5, 7, num_shards=num_shards, shard=shard
        )
        assert found.cardinality() == {1: 4, 2: 2}[num_shards]
        for converted, labels, weights in found.as_numpy_iterator():
            assert converted.shape == (7, 12, 16, 3)
            real = weights > 0
            for image, label in zip(converted[real], labels[real]):
                (index,) = np.flatnonzero((np.abs(expected - image) < 1e-5).all((1, 2, 3)))
                assert label.argmax() == index % 5
                seen.append(index)
    assert sorted(seen) == list(range(24))


@pytest.mark.parametrize(
    ("level", "label", "message"),
    [
        (np.nan, 0, "Images must contain numbers from 0 to 255. : Tensor had NaN"),
        (0.0, 5, "Labels must be from 0 to 4."),
        (0.0, -1, "Labels must be from 0 to 4."),
    ],
)
def test_errors_on_bad_images_and_labels(level, label, message):
    dataset = tf.data.Dataset.from_tensor_slices(
        (np.full((4, 9, 9, 3), level, "float32"), [0, 1, 2, label])
    )
    found = batches.training_batches(dataset, Augmentation(), DeiTImageConverter((12, 16)), 5, 4)
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        next(iter(found))
