"""RandAugment for `tf.data`, in the variant that DeiT uses: timm's `rand-m9-mstd0.5-inc1`.

Images have shape (height, width, 3) and are float tensors of integers from 0 to 255. Every
operation returns the same pixels as Pillow.

Reference: for operations, ranges and probabilities, timm 1.0.31, `auto_augment.py` and
`transforms_factory.py`; for each operation, Pillow's `ImageOps`, `ImageEnhance`, `Image.transform`
and `Image.rotate`.
"""

import math

from keras_deit.arguments import check_fraction, check_non_negative_number, check_positive_int
from keras_deit.training.require_tensorflow import tf

OPERATIONS = (
    "AutoContrast",
    "Equalize",
    "Invert",
    "Rotate",
    "PosterizeIncreasing",
    "SolarizeIncreasing",
    "SolarizeAdd",
    "ColorIncreasing",
    "ContrastIncreasing",
    "BrightnessIncreasing",
    "SharpnessIncreasing",
    "ShearX",
    "ShearY",
    "TranslateXRel",
    "TranslateYRel",
)

IMAGENET_MEAN = (124, 116, 104)  # 255 * (0.485, 0.456, 0.406), rounded


def rand_augment(
    image, seed, fill=IMAGENET_MEAN, num_operations=2, magnitude=9.0, magnitude_std=0.5, rate=0.5
):
    """Applies random operations one after the other, drawn with replacement.

    Unlike torchvision's RandAugment, the magnitude is random, and each drawn operation is applied
    with probability `rate` only.

    Args:
        image: float32 tensor of shape (height, width, 3) with integers from 0 to 255. Height and
            width may be unknown.
        seed: stateless seed, integer tensor of shape (2,).
        fill: RGB color of pixels that come from outside the image.
        num_operations: int, number of operations drawn per image.
        magnitude, magnitude_std: floats, mean and standard deviation of the magnitude, which is
            clipped to 0 and 10.
        rate: probability that a drawn operation is applied.

    Returns:
        A tensor of the same shape and type as `image`.

    Reference: Cubuk et al., 2019, https://arxiv.org/abs/1909.13719
    """
    num_operations = check_positive_int("num_operations", num_operations)
    magnitude = check_non_negative_number("magnitude", magnitude)
    magnitude_std = check_non_negative_number("magnitude_std", magnitude_std)
    rate = check_fraction("rate", rate)
    choices, levels, signs = draw_operations(seed, num_operations, magnitude, magnitude_std, rate)
    for index in range(num_operations):
        image = _apply(image, choices[index], levels[index], signs[index], tuple(map(float, fill)))
    return image


def draw_operations(seed, num_operations, magnitude, magnitude_std, rate):
    """Draws the operations of one image.

    Returns:
        Three tensors of shape (num_operations,): indices of `OPERATIONS`, or their number for no
        operation; magnitudes, 0 to 1; signs, -1 or 1.
    """
    uniform, normal = tf.unstack(tf.random.split(seed, 2))
    choice, apply, sign = tf.unstack(tf.random.stateless_uniform((3, num_operations), uniform))
    choice = tf.where(apply < rate, tf.cast(choice * len(OPERATIONS), tf.int32), len(OPERATIONS))
    level = tf.random.stateless_normal((num_operations,), normal, magnitude, magnitude_std)
    return choice, tf.clip_by_value(level, 0.0, 10.0) / 10.0, tf.where(sign < 0.5, -1.0, 1.0)


@tf.function(autograph=False)  # traced once for all of an image's operations
def _apply(image, choice, level, sign, fill):
    # If inlined, the executor would visit every node of the operations not chosen, which takes
    # 1 ms.
    alone = {"autograph": False, "experimental_attributes": {"_noinline": True}}
    branches = [tf.function(branch, **alone) for branch in _branches(image, level, sign, fill)]
    return tf.ensure_shape(tf.switch_case(choice, branches), image.shape)


def _branches(image, level, sign, fill):
    """One function per operation, and the identity."""
    signed = sign * level
    factor = tf.maximum(0.1, 1.0 + 0.9 * signed)
    return [
        lambda: auto_contrast(image),
        lambda: equalize(image),
        lambda: 255.0 - image,
        lambda: rotate(image, 30.0 * signed, fill),
        # A magnitude of 10, one in 44 at the defaults, keeps no bits: black, as in older versions
        # of Pillow. Pillow 13 raises an error.
        lambda: posterize(image, 4.0 - tf.floor(4.0 * level)),
        lambda: solarize(image, 256.0 - tf.floor(256.0 * level)),
        lambda: solarize_add(image, tf.floor(110.0 * level)),
        lambda: color(image, factor),
        lambda: contrast(image, factor),
        lambda: brightness(image, factor),
        lambda: sharpness(image, factor),
        lambda: shear_x(image, 0.3 * signed, fill),
        lambda: shear_y(image, 0.3 * signed, fill),
        lambda: translate_x(image, 0.45 * signed, fill),
        lambda: translate_y(image, 0.45 * signed, fill),
        lambda: image,
    ]


def auto_contrast(image):
    """Stretches the values of each channel to 0 to 255."""
    lowest, highest = (
        tf.cast(reduce(image, (0, 1)), tf.float64)[:, None]
        for reduce in (tf.reduce_min, tf.reduce_max)
    )
    # Pillow's own steps in float64, because it truncates results just below an integer.
    scale = 255.0 / tf.maximum(highest - lowest, 1.0)
    levels = tf.range(256, dtype=tf.float64)
    spread = tf.clip_by_value(tf.floor(levels * scale + -lowest * scale), 0.0, 255.0)
    table = tf.where(highest > lowest, spread, levels)
    return _look_up(tf.cast(table, tf.float32), _places(image))


def equalize(image):
    """Equalizes the histogram of each channel."""
    places = _places(image)
    counts = tf.reshape(
        tf.math.bincount(tf.reshape(places, (-1,)), minlength=768, maxlength=768), (3, 256)
    )
    below = tf.cumsum(counts, axis=1, exclusive=True)
    # Pillow does not count the pixels with the highest value.
    step = tf.reduce_max(tf.where(counts > 0, below, 0), axis=1, keepdims=True) // 255
    moved = tf.minimum((step // 2 + below) // tf.maximum(step, 1), 255)
    table = tf.where(step > 0, moved, tf.range(256))
    return _look_up(tf.cast(table, tf.float32), places)


def posterize(image, bits):
    """Keeps the highest `bits` (0 to 8) of each value."""
    step = 2.0 ** (8.0 - bits)
    return step * tf.floor(image / step)


def solarize(image, threshold):
    """Inverts values of at least `threshold`."""
    return tf.where(image < threshold, image, 255.0 - image)


def solarize_add(image, amount):
    """Adds `amount` to values below 128."""
    return tf.where(image < 128.0, tf.minimum(image + amount, 255.0), image)


def color(image, factor):
    """Blends with the gray image: a factor below 1 reduces saturation, above 1 increases it."""
    return _blend(_gray(image), image, factor)


def contrast(image, factor):
    """Blends with the mean gray of the image."""
    mean = tf.reduce_mean(tf.cast(_gray(image), tf.float64))
    return _blend(tf.cast(tf.floor(mean + 0.5), tf.float32), image, factor)


def brightness(image, factor):
    """Blends with black."""
    return _blend(0.0, image, factor)


def sharpness(image, factor):
    """Blends with a smoothed image: a 3 x 3 kernel of 1 with 5 in the center. Borders are kept."""
    rows = image[:-2] + image[1:-1] + image[2:]
    boxes = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
    inner = image[1:-1, 1:-1]
    smooth = tf.floor((boxes + 4.0 * inner) / 13.0 + 0.5)
    middle = tf.concat((image[1:-1, :1], _blend(smooth, inner, factor), image[1:-1, -1:]), axis=1)
    return tf.concat((image[:1], middle, image[-1:]), axis=0)


def shear_x(image, factor, fill):
    """Moves each row left by `factor` times its distance from the top, in pixels."""
    return _slide_rows(image, tf.cast(factor, tf.float64) * _centers(tf.shape(image)[0]), fill)


def shear_y(image, factor, fill):
    """Moves each column up by `factor` times its distance from the left, in pixels."""
    return _transpose(shear_x(_transpose(image), factor, fill))


def translate_x(image, share, fill):
    """Moves the image left by a share of its width."""
    height, width = tf.unstack(tf.cast(tf.shape(image)[:2], tf.float64))
    return _slide_rows(
        image, tf.repeat(tf.cast(share, tf.float64) * width, tf.cast(height, tf.int32)), fill
    )


def translate_y(image, share, fill):
    """Moves the image up by a share of its height."""
    return _transpose(translate_x(_transpose(image), share, fill))


def rotate(image, degrees, fill):
    """Rotates counterclockwise about the center."""
    height, width = tf.unstack(tf.shape(image)[:2])
    middle_x, middle_y = tf.cast(width, tf.float64) / 2, tf.cast(height, tf.float64) / 2
    x, y = _centers(width) - middle_x, _centers(height)[:, None] - middle_y
    angle = tf.cast(degrees, tf.float64) * (math.pi / 180)
    cosine, sine = tf.cos(angle), tf.sin(angle)
    return _sample(image, cosine * x - sine * y + middle_x, cosine * y + sine * x + middle_y, fill)


def _places(image):
    """Index of each pixel's entry in a flattened table of shape (3, 256)."""
    return tf.cast(image + (0.0, 256.0, 512.0), tf.int32)


def _look_up(table, places):
    return tf.gather(tf.reshape(table, (-1,)), places)


def _gray(image):
    """Pillow's "L", (H, W, 1): integer weights over 2**16, exact in float32."""
    weighted = tf.tensordot(image, tf.constant([[19595.0], [38470.0], [7471.0]]), 1)
    return tf.floor((weighted + 32768.0) / 65536.0)


def _blend(other, image, factor):
    return _to_levels(other + factor * (image - other))


def _to_levels(values):
    """Clips and truncates, as Pillow does."""
    return tf.floor(tf.clip_by_value(values, 0.0, 255.0))


def _transpose(image):
    return tf.transpose(image, (1, 0, 2))


def _centers(size):
    """Pixel centers along an axis. In float32, some would round to the wrong side of an edge."""
    return tf.range(tf.cast(size, tf.float64)) + 0.5


def _slide_rows(image, offsets, fill):
    """Moves row y left by `offsets[y]` pixels, float64."""
    width = tf.shape(image)[1]
    whole = tf.floor(offsets)
    columns = tf.range(-1, width + 2) + tf.cast(whole, tf.int32)[:, None]
    taps = tf.gather(image, tf.clip_by_value(columns, 0, width - 1), batch_dims=1)  # (H, W + 3, 3)
    between = tf.cast(offsets - whole, tf.float32)[:, None, None]
    values = _cubic(*(taps[:, start : start + width] for start in range(4)), between)
    return _fill_outside(values, _inside(_centers(width) + offsets[:, None], width), fill)


def _sample(image, x, y, fill):
    """Interpolates the image at the points (x, y), float64 of shape (H, W)."""
    height, width = tf.unstack(tf.shape(image)[:2])
    left, top = tf.floor(x - 0.5), tf.floor(y - 0.5)
    # Each entry holds four neighbors of a row, so that a point takes four reads, not sixteen.
    rows, columns = (
        tf.clip_by_value(tf.range(-2, size + 2), 0, size - 1) for size in (height, width)
    )
    padded = tf.gather(tf.gather(image, rows), columns, axis=1)
    # (H + 4, W + 1, 12)
    neighbors = tf.concat([padded[:, start : start + width + 1] for start in range(4)], axis=-1)
    neighbors = tf.reshape(neighbors, (-1, 12))
    column, row = (
        tf.clip_by_value(tf.cast(start, tf.int32) + 1, 0, size)
        for start, size in ((left, width), (top, height))
    )
    first = row * (width + 1) + column
    taps = [tf.gather(neighbors, first + step * (width + 1)) for step in range(4)]  # (H, W, 12)
    values = _cubic(*taps, tf.cast(y - 0.5 - top, tf.float32)[..., None])
    values = _cubic(*tf.split(values, 4, axis=-1), tf.cast(x - 0.5 - left, tf.float32)[..., None])
    return _fill_outside(values, _inside(x, width) & _inside(y, height), fill)


def _cubic(before, left, right, after, between):
    """Pillow's bicubic filter (a = -1), at the share `between` of the way from left to right.

    Nested products keep a uniform area exact. A weighted sum would end up slightly below, and be
    truncated to the next lower integer.
    """
    change = left - before + after - right
    bend = 2.0 * (before - left) + right - after
    return left + between * (right - before + between * (bend + between * change))


def _inside(positions, size):
    return (positions >= 0) & (positions < tf.cast(size, tf.float64))


def _fill_outside(values, inside, fill):
    return tf.where(inside[..., None], _to_levels(values), tf.constant(fill, tf.float32))
