"""Statistics of each augmentation: rates, ranges, and that labels mix as images do."""

import dataclasses

import keras
import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")

from keras_deit.layers import DeiTImageConverter  # noqa: E402
from keras_deit.models import DeiTDistiller  # noqa: E402
from keras_deit.training import RECIPES, Augmentation, augmentation  # noqa: E402
from tests.helpers import raises, tiny_classifier  # noqa: E402

N = 1500


def seeds(n=N):
    return tf.random.stateless_uniform((n, 2), (1, 2), maxval=2**31 - 1, dtype=tf.int32)


def many(function, n=N, dtype=tf.float32):
    """`function(seed)` for many seeds."""
    call = tf.function(lambda: tf.map_fn(function, seeds(n), fn_output_signature=dtype))
    return tf.nest.map_structure(np.asarray, call())


def assert_share(found, expected, n=N):
    assert abs(found - expected) < 4 * np.sqrt(expected * (1 - expected) / n)


def noise_image(height=12, width=16):
    return tf.constant(np.random.default_rng(0).integers(0, 256, (height, width, 3)), tf.float32)


def test_boxes_have_the_area_and_the_ratio_asked_for_and_lie_inside():
    top, left, height, width, found = many(
        lambda seed: augmentation.random_box(300, 400, (0.08, 1.0), (3 / 4, 4 / 3), seed),
        dtype=(tf.int32, tf.int32, tf.int32, tf.int32, tf.bool),
    )
    assert found.mean() > 0.99
    top, left, height, width = (values[found] for values in (top, left, height, width))
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= 300).all()
    assert (left + width <= 400).all()
    area, ratio = height * width / (300 * 400), width / height
    assert 0.078 < area.min() < 0.1
    assert 0.9 < area.max() <= 1.0
    assert 0.74 < ratio.min() < 0.76
    assert 1.31 < ratio.max() < 1.35
    # Of boxes that always fit, the area is uniform and the logarithm of the ratio too.
    *_, height, width, found = many(
        lambda seed: augmentation.random_box(300, 300, (0.1, 0.5), (3 / 4, 4 / 3), seed),
        dtype=(tf.int32, tf.int32, tf.int32, tf.int32, tf.bool),
    )
    assert found.all()
    assert abs((height * width / 90000).mean() - 0.3) < 4 * 0.4 / np.sqrt(12 * N)
    assert abs(np.log(width / height).mean()) < 4 * 2 * np.log(4 / 3) / np.sqrt(12 * N)


def test_crop_of_everything_is_a_resize_and_of_a_panorama_its_centre(photographs):
    photograph = tf.cast(photographs[0][:400, :400], tf.float32)
    cropped = augmentation.random_resized_crop(photograph, (32, 48), (1, 2), scale=(1.0, 1.0), ratio=(1.0, 1.0))
    converter = DeiTImageConverter((32, 48), crop_ratio=1.0, crop_to_aspect_ratio=False, mean=0.0, std=1.0)
    # The converter resizes the axes one after the other, and rounds between.
    assert np.abs(cropped - keras.ops.convert_to_numpy(converter(photograph)) * 255).max() <= 2
    ramp = tf.tile(tf.range(120.0)[None, :, None], (12, 1, 3))
    middle = np.asarray(augmentation.random_resized_crop(ramp, (12, 16), (1, 2), scale=(1.0, 1.0)))
    np.testing.assert_allclose(middle[0, :, 0], np.arange(52, 68), atol=1)


def test_padded_crop_keeps_the_scale():
    ramp = tf.tile(tf.range(48.0)[None, :, None], (24, 1, 3))
    left = many(lambda seed: augmentation.padded_crop(ramp, (12, 12), seed), 200)
    assert left.shape == (200, 12, 12, 3)
    steps = np.abs(np.diff(left[:, 0, :, 0], axis=1))
    assert set(np.round(steps).ravel()) <= {0, 1, 2, 3}  # half the size; reflected at the edges
    assert len(set(left[:, 0, 6, 0])) > 8


def test_three_augment_does_one_of_three():
    from PIL import Image, ImageOps
    from scipy.ndimage import gaussian_filter

    image = noise_image()
    pixels = np.asarray(image).astype("uint8")
    results = many(lambda seed: augmentation.three_augment(image, seed))
    gray = np.abs(results - np.asarray(Image.fromarray(pixels).convert("L"))[..., None]).max((1, 2, 3)) <= 1
    solarized = (results == np.asarray(ImageOps.solarize(Image.fromarray(pixels)))).all((1, 2, 3))
    assert not (gray & solarized).any()
    for kind in (gray, solarized):
        assert_share(kind.mean(), 1 / 3)
    blurred = results[~gray & ~solarized]
    assert blurred[:, :, :, 0].std() < np.asarray(image)[..., 0].std()
    for sigma in (0.1, 1.3, 2.0):
        expected = gaussian_filter(np.asarray(image), (sigma, sigma, 0), mode="mirror", radius=6)
        np.testing.assert_allclose(augmentation.gaussian_blur(image, sigma), expected, atol=1e-3)


def test_color_jitter_changes_by_as_much_as_asked():
    image = noise_image()
    np.testing.assert_allclose(augmentation.color_jitter(image, 0.0, (1, 2)), image, atol=1e-3)
    gray = tf.fill((4, 6, 3), 100.0)  # contrast and saturation leave it as it is
    levels = many(lambda seed: augmentation.color_jitter(gray, 0.3, seed))[:, 0, 0, 0]
    assert 70 <= levels.min() < 72
    assert 128 < levels.max() <= 130
    assert abs(levels.mean() - 100) < 4 * 60 / np.sqrt(12 * N)
    red = tf.constant([[[200.0, 50.0, 50.0]]])
    spreads = np.ptp(many(lambda seed: augmentation.color_jitter(red, 0.3, seed)), axis=-1)
    assert spreads.min() < 100 < 200 < spreads.max()  # of 150, times up to three factors
    assert (0 <= many(lambda seed: augmentation.color_jitter(image, 1.0, seed), 50)).all()


def test_erasing_fills_a_box_with_noise_in_its_share_of_images():
    image = tf.fill((24, 32, 3), 7.0)
    results = many(lambda seed: augmentation.random_erasing(image, 0.25, seed))
    changed = (results != 7.0).all(-1)
    erased = changed.any((1, 2))
    assert_share(erased.mean(), 0.25)
    areas = changed[erased].mean((1, 2))
    assert 0.015 < areas.min() < 0.05
    assert 0.28 < areas.max() < 0.36
    for mask in changed[erased][:50]:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert mask.sum() == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)  # one box
    noise = results[changed]
    assert abs(noise.mean()) < 4 / np.sqrt(noise.size)
    assert abs(noise.std() - 1) < 4 / np.sqrt(2 * noise.size)
    assert (many(lambda seed: augmentation.random_erasing(image, 0.0, seed), 50) == 7.0).all()


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_labels_mix_as_images_do(mixup, cutmix):
    values = np.asarray([0.0, 1.0, 4.0, 9.0], "float32")
    images = tf.constant(np.broadcast_to(values[:, None, None, None], (4, 16, 24, 3)))
    mixed, labels = many(lambda seed: augmentation.mix(images, tf.eye(4), mixup, cutmix, seed), dtype=(tf.float32, tf.float32))
    np.testing.assert_allclose(labels.sum(-1), 1.0, atol=1e-5)
    np.testing.assert_allclose(mixed.mean((2, 3, 4)), labels @ values, atol=1e-4)
    assert (np.count_nonzero(labels, axis=-1) <= 2).all()
    kept = labels[:, 0, 0]
    np.testing.assert_allclose(labels[:, 0, 3], 1 - kept, atol=1e-5)  # with the batch in reverse
    np.testing.assert_allclose(labels[:, 1, 1], kept, atol=1e-5)  # all alike
    cuts = np.asarray([set(np.unique(image)) <= set(values) for image in mixed.reshape(N, -1)])
    if mixup and cutmix:
        assert_share(cuts.mean(), 0.5)
    else:
        assert cuts.mean() == bool(cutmix)
    if not cutmix:  # Beta(0.8, 0.8): mean 1/2, variance 1 / (4 * 2.6)
        assert abs(kept.mean() - 0.5) < 4 * np.sqrt(1 / (4 * 2.6) / N)
        assert abs(kept.var() - 1 / (4 * 2.6)) < 0.01


def test_rand_augment_changes_three_images_of_four():
    rand_augment = pytest.importorskip("keras_cv") and augmentation.rand_augment()
    image = noise_image(32, 32)
    dataset = tf.data.Dataset.from_tensors(image).repeat(400).map(rand_augment)
    results = np.stack(list(dataset.as_numpy_iterator()))
    assert results.min() >= 0
    assert results.max() <= 255
    # Two operations, each on half of the images; some of them leave an image of noise as it is.
    assert 0.55 < (np.abs(results - np.asarray(image)) > 1).any((1, 2, 3)).mean() < 0.85


def dataset_of(n=24, channels=3):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (n, 20, 30, channels)).astype("uint8")
    return tf.data.Dataset.from_tensor_slices((images, np.arange(n) % 5))


def batches_of(count, *args, **kwargs):
    batches = augmentation.augment(dataset_of(), *args, 5, **kwargs)
    assert batches.cardinality() == tf.data.INFINITE_CARDINALITY
    return [tuple(map(np.asarray, batch)) for batch in batches.take(count)]


def assert_same(batches, others):
    for batch, other in zip(batches, others, strict=True):
        np.testing.assert_array_equal(batch[0], other[0])
        np.testing.assert_array_equal(batch[1], other[1])


def test_batches_are_those_of_the_recipe_and_of_the_seed():
    recipe, converter = RECIPES["deit3_small"].augmentation, DeiTImageConverter((12, 16))
    batches = batches_of(8, recipe, converter, batch_size=6, seed=3)
    images, labels = batches[0]
    assert images.shape == (6, 12, 16, 3)
    assert images.dtype == labels.dtype == np.float32
    assert labels.shape == (6, 5)
    np.testing.assert_allclose(labels.sum(-1), 1.0, atol=1e-5)
    assert np.abs(images).max() < 3
    assert_same(batches, batches_of(8, recipe, converter, batch_size=6, seed=3))
    assert not np.array_equal(batches_of(1, recipe, converter, batch_size=6, seed=4)[0][0], images)


@pytest.mark.parametrize("repeats", [1, 3])
def test_a_training_goes_on_where_it_was_left(repeats):
    recipe, converter = RECIPES["deit3_small"].augmentation, DeiTImageConverter((12, 16))
    recipe = dataclasses.replace(recipe, repeats=repeats)
    batches = batches_of(14, recipe, converter, batch_size=7)
    for seen in (1, 5, 11):  # in a pass of 24 images, in the next ones, in the middle of an image's copies
        assert_same(batches[seen:], batches_of(14 - seen, recipe, converter, batch_size=7, start=7 * seen))


def test_processes_share_the_images_of_a_batch():
    recipe, converter = Augmentation(three_augment=True, erasing_rate=0.5), DeiTImageConverter((12, 16))
    whole = batches_of(5, recipe, converter, batch_size=6)
    shards = [batches_of(5, recipe, converter, batch_size=3, num_shards=2, shard=shard) for shard in range(2)]
    for index, (images, labels) in enumerate(whole):
        for shard in range(2):
            np.testing.assert_array_equal(shards[shard][index][0], images[shard::2])
            np.testing.assert_array_equal(shards[shard][index][1], labels[shard::2])


def test_each_process_reads_its_images_alone():
    files = tf.data.Dataset.range(24)
    was_read = []

    def read(index):
        tf.numpy_function(lambda index: was_read.append(int(index)), [index], [])
        return tf.zeros((20, 30, 3)), index % 5

    converter = DeiTImageConverter((12, 16))
    batches = augmentation.augment(files, Augmentation(), converter, 5, 6, 24, read, num_shards=2, shard=1)
    assert len(list(batches.take(2))) == 2  # all of this process' part of the first pass, and what is read ahead
    assert len(set(was_read[:12])) == 12
    other = augmentation.augment(
        files,
        Augmentation(),
        converter,
        5,
        6,
        24,
        lambda index: (tf.zeros((9, 9, 3)) + tf.cast(index, tf.float32), 0),
        num_shards=2,
    )
    seen = np.concatenate(
        [images[:, 0, 0, 0] * converter.std[0] * 255 + converter.mean[0] * 255 for images, _ in other.take(2)]
    )
    assert not set(was_read[:12]) & set(np.round(seen).astype(int))


def test_each_pass_has_every_image_in_another_order():
    batches = batches_of(8, Augmentation(), DeiTImageConverter((12, 16)), batch_size=6)
    orders = np.concatenate([labels for _, labels in batches]).argmax(-1).reshape(2, 24)
    for order in orders:
        np.testing.assert_array_equal(np.bincount(order), [5, 5, 5, 5, 4])
    assert not np.array_equal(*orders)


def test_repeated_augmentation_repeats_images():
    (images, labels), *_ = batches = batches_of(4, Augmentation(repeats=3), DeiTImageConverter((12, 16)), batch_size=6)
    labels = np.concatenate([batch[1] for batch in batches]).argmax(-1).reshape(8, 3)
    assert (labels == labels[:, :1]).all()
    assert not np.array_equal(images[0], images[1])


def test_gray_images_and_channels_first_train_a_distiller():
    student = tiny_classifier(
        {"image_shape": (12, 32, 1), "num_layers": 1}, preprocessor=DeiTImageConverter((12, 32), mean=0.5, std=0.5)
    )
    converter = student.preprocessor
    recipe = Augmentation(erasing_rate=0.25, mixup_alpha=0.8, cutmix_alpha=1.0)
    batches = augmentation.augment(dataset_of(channels=1), recipe, converter, 5, 6)
    student.preprocessor = None
    distiller = DeiTDistiller(student, lambda images: keras.ops.zeros((keras.ops.shape(images)[0], 5)))
    distiller.compile("sgd", RECIPES["deit"].build_loss())
    assert np.isfinite(distiller.fit(batches, steps_per_epoch=4, shuffle=False, verbose=0).history["loss"]).all()
    first = DeiTImageConverter((12, 32), mean=0.5, std=0.5, data_format="channels_first")
    assert augmentation.augment(dataset_of(channels=1), recipe, first, 5, 6).element_spec[0].shape == (6, 1, 12, 32)


def test_datasets_that_do_not_fit_are_refused():
    converter = DeiTImageConverter((12, 16))
    with pytest.raises(
        ValueError, match=r"must be of single images and labels, \(image \(H, W, channels\), label\), before any"
    ):
        augmentation.augment(dataset_of().batch(2), Augmentation(), converter, 5, 6)
    with raises(
        "RandAugment, 3-Augment and colour jitter are of images with 3 channels, and the number of channels must be known. "
        "Received: images of shape (20, 30, 1)"
    ):
        augmentation.augment(dataset_of(channels=1), RECIPES["deit"].augmentation, converter, 5, 6)
    with raises(
        "`dataset` must have a known length, above 0: see `tf.data.Dataset.cardinality` and "
        "`apply(tf.data.experimental.assert_cardinality(length))`. Received: a dataset of cardinality -1"
    ):
        augmentation.augment(dataset_of().repeat(), Augmentation(), converter, 5, 6)
