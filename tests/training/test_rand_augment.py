"""Each operation against Pillow, the random draw by its statistics, and everything against timm."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")

from PIL import Image, ImageEnhance, ImageOps  # noqa: E402

from keras_deit.training import rand_augment as module  # noqa: E402
from keras_deit.training.rand_augment import OPERATIONS, draw_operations, rand_augment  # noqa: E402

FILL = (7, 116, 204)
N = 60000


@pytest.fixture(scope="module")
def images(photographs):
    """Images (48, 40, 3). Flat and almost flat channels are difficult for histograms."""
    rng = np.random.default_rng(0)
    images = {
        "noise": rng.integers(0, 256, (48, 40, 3)),
        "photograph": photographs[0][100:196:2, 200:280:2],
        "dark": photographs[1][100:148, 200:240] // (5, 3, 2) + (9, 40, 77),
        "flat": np.broadcast_to((0, 90, 255), (48, 40, 3)),
        "two levels": rng.integers(0, 2, (48, 40, 3)) * (1, 100, 255),
    }
    return {name: image.astype("uint8") for name, image in images.items()}


def levels_of_both(pixels, ours, theirs):
    found = np.asarray(ours(tf.constant(pixels, tf.float32)))
    np.testing.assert_array_equal(found, np.clip(np.round(found), 0, 255))
    return found.astype(int), np.asarray(theirs(Image.fromarray(pixels))).astype(int)


def assert_same(images, ours, theirs):
    for name, pixels in images.items():
        found, expected = levels_of_both(pixels, ours, theirs)
        np.testing.assert_array_equal(found, expected, name)


def assert_close(images, ours, theirs):
    """Asserts equality, except for values at the edge of truncation, where float32 and float64 may
    differ by 1.
    """
    for name, pixels in images.items():
        found, expected = levels_of_both(pixels, ours, theirs)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1, err_msg=name)
        assert (found != expected).mean() < 0.001, name


def test_histogram_operations_equal_pillow(images):
    assert_same(images, module.auto_contrast, ImageOps.autocontrast)
    assert_same(images, module.equalize, ImageOps.equalize)


def test_auto_contrast_truncates_like_pillow():
    # For some ranges Pillow's scale and offset leave the highest level at 254.99..., which becomes
    # 254.
    ranges = [
        (0, 1),
        (3, 250),
        (100, 102),
        (200, 255),
        *np.sort(np.random.default_rng(0).integers(0, 256, (40, 2))),
    ]
    ramps = {
        f"{low} to {high}": np.linspace(low, high, 300).round().astype("uint8")
        for low, high in ranges
    }
    ramps = {
        name: np.broadcast_to(ramp[:, None, None], (300, 2, 3)) for name, ramp in ramps.items()
    }
    assert_same(ramps, module.auto_contrast, ImageOps.autocontrast)
    assert any(
        np.asarray(ImageOps.autocontrast(Image.fromarray(ramp))).max() == 254
        for ramp in ramps.values()
    )


def posterized(image, bits):
    # Pillow 13 refuses to keep no bits; older ones gave black.
    return ImageOps.posterize(image, bits) if bits else Image.new("RGB", image.size)


def test_posterize_equals_pillow(images):
    for bits in (0, 1, 2, 4, 8):
        bits_of = tf.constant(float(bits))
        assert_same(
            images,
            lambda image, bits=bits_of: module.posterize(image, bits),
            lambda image, bits=bits: posterized(image, bits),
        )


def test_solarize_equals_pillow(images):
    for threshold in (0, 26, 128, 256):
        assert_same(
            images,
            lambda image, threshold=threshold: module.solarize(image, float(threshold)),
            lambda image, threshold=threshold: ImageOps.solarize(image, threshold),
        )


def solarize_added(image, amount):
    return image.point(
        [min(255, level + amount) if level < 128 else level for level in range(256)] * 3
    )


def test_solarize_add_raises_the_lower_half(images):
    for amount in (0, 99, 128):
        assert_same(
            images,
            lambda image, amount=amount: module.solarize_add(image, float(amount)),
            lambda image, amount=amount: solarize_added(image, amount),
        )


ENHANCERS = {
    "color": ImageEnhance.Color,
    "contrast": ImageEnhance.Contrast,
    "brightness": ImageEnhance.Brightness,
    "sharpness": ImageEnhance.Sharpness,
}


@pytest.mark.parametrize("name", ENHANCERS)
def test_enhancers_equal_pillow(images, name):
    for factor in np.float32((0.1, 0.1913, 0.77, 1.0, 1.8137)):
        assert_close(
            images,
            lambda image, factor=factor: getattr(module, name)(image, factor),
            lambda image, factor=factor: ENHANCERS[name](image).enhance(float(factor)),
        )


def affine(image, *matrix):
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=FILL
    )


GEOMETRIC = {
    "rotate": lambda image, degrees: image.rotate(
        degrees, Image.Resampling.BICUBIC, fillcolor=FILL
    ),
    "shear_x": lambda image, factor: affine(image, 1, factor, 0, 0, 1, 0),
    "shear_y": lambda image, factor: affine(image, 1, 0, 0, factor, 1, 0),
    "translate_x": lambda image, share: affine(image, 1, 0, share * image.size[0], 0, 1, 0),
    "translate_y": lambda image, share: affine(image, 1, 0, 0, 0, 1, share * image.size[1]),
}


@pytest.mark.parametrize("name", GEOMETRIC)
def test_geometric_operations_equal_pillow_bicubic(images, name):
    # Of rounder amounts many values would fall on the edges of levels.
    for amount in np.float32((-0.2837, 0.0, 0.0131, 0.2469, 0.4043)) * (
        100 if name == "rotate" else 1
    ):
        assert_close(
            images,
            lambda image, amount=amount: getattr(module, name)(image, amount, FILL),
            lambda image, amount=amount: GEOMETRIC[name](image, float(amount)),
        )


def draw(num_operations=N, magnitude=9.0, magnitude_std=0.5, rate=0.5, seed=(1, 2)):
    return [
        np.asarray(values)
        for values in draw_operations(seed, num_operations, magnitude, magnitude_std, rate)
    ]


def assert_share(found, expected, n):
    assert abs(found - expected) < 4 * np.sqrt(expected * (1 - expected) / n)


def test_operations_are_drawn_uniformly_and_half_are_applied():
    choices, levels, signs = draw()
    counts = np.bincount(choices, minlength=16)
    assert len(counts) == len(OPERATIONS) + 1 == 16
    assert_share(counts[-1] / N, 0.5, N)
    for count in counts[:-1]:
        assert_share(count / N, 1 / 30, N)
    assert set(signs) == {-1.0, 1.0}
    assert_share((signs == 1).mean(), 0.5, N)
    assert (draw(rate=1.0)[0] < 15).all()
    assert (draw(rate=0.0)[0] == 15).all()
    # What one decides says nothing of the others, nor of the next operation.
    applied = choices < 15
    for first, second in (
        (applied, signs),
        (choices % 2, signs),
        (levels, signs),
        (applied, levels),
    ):
        assert abs(np.corrcoef(first, second)[0, 1]) < 4 / np.sqrt(N)
    for values in (choices, levels, signs):
        assert abs(np.corrcoef(values[1:], values[:-1])[0, 1]) < 4 / np.sqrt(N)


def test_magnitudes_are_normal_and_clipped():
    levels = draw()[1]
    assert levels.max() == 1.0
    assert_share((levels == 1.0).mean(), 0.02275, N)  # 2 sigma over the mean
    levels = draw(magnitude=5.0)[1]
    assert abs(levels.mean() - 0.5) < 4 * 0.05 / np.sqrt(N)
    assert abs(levels.std() - 0.05) < 4 * 0.05 / np.sqrt(2 * N)
    np.testing.assert_allclose(draw(magnitude=7.0, magnitude_std=0.0)[1], 0.7)
    assert (draw(magnitude=-9.0)[1] == 0.0).all()


# What Pillow is asked for at a level, from 0 to 1, with a sign.
EXPECTED = {
    "AutoContrast": lambda image, level, sign: ImageOps.autocontrast(image),
    "Equalize": lambda image, level, sign: ImageOps.equalize(image),
    "Invert": lambda image, level, sign: ImageOps.invert(image),
    "Rotate": lambda image, level, sign: GEOMETRIC["rotate"](image, 30 * sign * level),
    "PosterizeIncreasing": lambda image, level, sign: posterized(image, 4 - int(4 * level)),
    "SolarizeIncreasing": lambda image, level, sign: ImageOps.solarize(
        image, 256 - int(256 * level)
    ),
    "SolarizeAdd": lambda image, level, sign: solarize_added(image, int(110 * level)),
    "ColorIncreasing": lambda image, level, sign: ImageEnhance.Color(image).enhance(
        1 + 0.9 * sign * level
    ),
    "ContrastIncreasing": lambda image, level, sign: ImageEnhance.Contrast(image).enhance(
        1 + 0.9 * sign * level
    ),
    "BrightnessIncreasing": lambda image, level, sign: ImageEnhance.Brightness(image).enhance(
        1 + 0.9 * sign * level
    ),
    "SharpnessIncreasing": lambda image, level, sign: ImageEnhance.Sharpness(image).enhance(
        1 + 0.9 * sign * level
    ),
    "ShearX": lambda image, level, sign: GEOMETRIC["shear_x"](image, 0.3 * sign * level),
    "ShearY": lambda image, level, sign: GEOMETRIC["shear_y"](image, 0.3 * sign * level),
    "TranslateXRel": lambda image, level, sign: GEOMETRIC["translate_x"](
        image, 0.45 * sign * level
    ),
    "TranslateYRel": lambda image, level, sign: GEOMETRIC["translate_y"](
        image, 0.45 * sign * level
    ),
}


def augmented(pixels, seeds, **kwargs):
    """One image for each of the seeds."""
    image = tf.constant(pixels, tf.float32)
    return np.stack([rand_augment(image, seed, FILL, **kwargs) for seed in seeds])


def test_drawn_operations_are_applied_in_order(images):
    pixels = images["photograph"]
    seeds = [(seed, 5) for seed in range(60)]
    seen = set()
    for seed, found in zip(seeds, augmented(pixels, seeds, rate=0.9)):
        expected = Image.fromarray(pixels)
        for choice, level, sign in zip(*draw(2, rate=0.9, seed=seed)):
            if choice < len(OPERATIONS):
                seen.add(OPERATIONS[choice])
                expected = EXPECTED[OPERATIONS[choice]](expected, float(level), float(sign))
        # A level of difference after the first may be more after the second, which may invert one
        # and not the other.
        assert (np.abs(found - np.asarray(expected)) > 1).mean() < 0.005
    assert seen == set(OPERATIONS)


@pytest.mark.peer
def test_operations_and_ranges_equal_timm(images, monkeypatch):
    """timm itself is the reference, so that this file need not repeat the ranges."""
    timm = importlib.util.find_spec("timm")
    if timm is None:
        pytest.skip("timm is not installed")
    # By its file: the package would bring PyTorch.
    path = Path(timm.origin).parent / "data" / "auto_augment.py"
    spec = importlib.util.spec_from_file_location("timm_auto_augment", path)
    theirs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(theirs)
    assert list(OPERATIONS) == theirs._RAND_INCREASING_TRANSFORMS

    pixels = images["photograph"]
    hparams = {"img_mean": FILL, "interpolation": Image.Resampling.BICUBIC}
    image = tf.constant(pixels, tf.float32)
    for level in np.float32((0.7413, 0.8973, 0.9973)):
        for sign in (-1.0, 1.0):
            monkeypatch.setattr(
                theirs.random, "random", lambda sign=sign: 0.25 if sign > 0 else 0.75
            )
            branches = module._branches(image, level, sign, FILL)
            for name, branch in zip(OPERATIONS, branches):
                operation = theirs.AugmentOp(name, 1.0, 10 * float(level), hparams)
                expected = np.asarray(operation(Image.fromarray(pixels))).astype(int)
                different = np.abs(np.asarray(branch()) - expected)
                assert different.max() <= 1, name
                assert (different > 0).mean() < 0.002, name
    np.testing.assert_array_equal(branches[-1](), pixels)


def test_seed(images):
    pixels = images["photograph"]
    seeds = [(seed, seed + 1) for seed in range(60)]
    first, again = augmented(pixels, seeds), augmented(pixels, seeds)
    np.testing.assert_array_equal(first, again)
    assert len({image.tobytes() for image in first}) > 30  # a quarter stays as it is
    assert (first == pixels).all((1, 2, 3)).mean() < 0.5
    assert first.min() >= 0
    assert first.max() <= 255
    np.testing.assert_array_equal(first, np.round(first))
    np.testing.assert_array_equal(
        augmented(pixels, seeds[:4], rate=0.0), np.broadcast_to(pixels, (4, 48, 40, 3))
    )


@pytest.mark.slow
def test_maps_a_dataset_of_known_and_unknown_sizes(images):
    pixels = images["photograph"].astype("float32")

    def mapped(elements, shape):
        dataset = tf.data.Dataset.from_generator(
            lambda: iter(elements), output_signature=tf.TensorSpec(shape, tf.float32)
        )
        dataset = tf.data.Dataset.zip(dataset, tf.data.Dataset.range(len(elements)))
        dataset = dataset.map(
            lambda image, seed: rand_augment(image, tf.stack([seed, 0]), FILL, rate=0.9),
            tf.data.AUTOTUNE,
        )
        assert dataset.element_spec.shape.as_list() == list(shape)
        return list(dataset.as_numpy_iterator())

    known = mapped([pixels] * 30, (48, 40, 3))
    unknown = mapped([pixels, pixels[3:, :23]] * 15, (None, None, 3))
    for index, (image, other) in enumerate(zip(known, unknown)):
        seed = tf.constant((index, 0), tf.int64)
        np.testing.assert_array_equal(
            image, rand_augment(tf.constant(pixels), seed, FILL, rate=0.9)
        )
        assert other.shape == ((45, 23, 3) if index % 2 else (48, 40, 3))
        np.testing.assert_array_equal(other, np.clip(np.round(other), 0, 255))
    np.testing.assert_array_equal(known[::2], unknown[::2])
