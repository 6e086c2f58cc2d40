"""Statistics of each augmentation: rates, ranges, and mixed labels."""

import keras
import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")

from keras_deit.layers import DeiTImageConverter  # noqa: E402
from keras_deit.training import augmentation  # noqa: E402

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


def test_random_boxes():
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


def test_crops_of_everything_and_of_a_panorama(photographs):
    photograph = tf.cast(photographs[0][:400, :400], tf.float32)
    cropped = augmentation.random_resized_crop(
        photograph, (32, 48), (1, 2), scale=(1.0, 1.0), ratio=(1.0, 1.0)
    )
    converter = DeiTImageConverter(
        (32, 48), crop_ratio=1.0, crop_to_aspect_ratio=False, mean=0.0, std=1.0
    )
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
    gray = (
        np.abs(results - np.asarray(Image.fromarray(pixels).convert("L"))[..., None]).max((1, 2, 3))
        <= 1
    )
    solarized = (results == np.asarray(ImageOps.solarize(Image.fromarray(pixels)))).all((1, 2, 3))
    assert not (gray & solarized).any()
    for kind in (gray, solarized):
        assert_share(kind.mean(), 1 / 3)
    blurred = results[~gray & ~solarized]
    assert blurred[:, :, :, 0].std() < np.asarray(image)[..., 0].std()
    for sigma in (0.1, 1.3, 2.0):
        expected = gaussian_filter(np.asarray(image), (sigma, sigma, 0), mode="mirror", radius=6)
        np.testing.assert_allclose(augmentation.gaussian_blur(image, sigma), expected, atol=1e-3)


def test_strength_of_color_jitter():
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


def test_random_erasing():
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
def test_labels_are_mixed_like_images(mixup, cutmix):
    values = np.asarray([0.0, 1.0, 4.0, 9.0], "float32")
    images = tf.constant(np.broadcast_to(values[:, None, None, None], (4, 16, 24, 3)))
    mixed, labels = many(
        lambda seed: augmentation.mix(images, tf.eye(4), mixup, cutmix, seed),
        dtype=(tf.float32, tf.float32),
    )
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
