"""The augmentation of the recipes in `tf.data`, on every Keras backend.

Each function takes a stateless seed, an integer tensor of shape (2,), and returns the same result
for the same seed. Images are float, 0 to 255, until they are normalized.

Reference: timm's `transforms_factory.py`, `random_erasing.py` and `mixup.py`, torchvision's
`RandomResizedCrop` and `ColorJitter`, and `augment.py` of facebookresearch/deit at 7e160fe.
"""

import math

from keras_deit.training.require_tensorflow import tf

_GRAY = (0.299, 0.587, 0.114)  # of red, green and blue in Pillow's "L"


def random_resized_crop(image, size, seed, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3)):
    """Crops a box of random area and aspect ratio and resizes it to `size`, (height, width).

    The filter is antialiased bicubic.
    """
    height, width = tf.shape(image)[0], tf.shape(image)[1]
    top, left, crop_height, crop_width, found = random_box(height, width, scale, ratio, seed)
    # If no drawn box fits, as in a panorama: the largest centered box of an allowed aspect ratio.
    whole_height = tf.minimum(
        height, tf.cast(tf.round(tf.cast(width, tf.float32) / ratio[0]), tf.int32)
    )
    whole_width = tf.minimum(
        width, tf.cast(tf.round(tf.cast(height, tf.float32) * ratio[1]), tf.int32)
    )
    crop_height, crop_width = (
        tf.where(found, crop_height, whole_height),
        tf.where(found, crop_width, whole_width),
    )
    top, left = (
        tf.where(found, top, (height - crop_height) // 2),
        tf.where(found, left, (width - crop_width) // 2),
    )
    return _resize(image[top : top + crop_height, left : left + crop_width], size)


def padded_crop(image, size, seed, padding=4):
    """DeiT III's simple random crop: resize to cover `size`, pad by reflection, crop at random."""
    shape = tf.cast(tf.shape(image)[:2], tf.float32)
    scale = tf.reduce_max(tf.constant(size, tf.float32) / shape)
    image = _resize(image, tf.cast(tf.round(shape * scale), tf.int32))
    image = tf.pad(image, ((padding, padding), (padding, padding), (0, 0)), "REFLECT")
    return tf.image.stateless_random_crop(image, (*size, image.shape[-1]), seed)


def three_augment(image, seed):
    """Applies grayscale, solarize or Gaussian blur, each with probability 1/3."""
    choice, blur = tf.unstack(tf.random.split(seed, 2))
    return tf.switch_case(
        tf.random.stateless_uniform((), choice, maxval=3, dtype=tf.int32),
        [
            lambda: tf.zeros_like(image) + _gray(image),
            lambda: tf.where(image < 128, image, 255 - image),
            lambda: gaussian_blur(image, tf.random.stateless_uniform((), blur, 0.1, 2.0)),
        ],
    )


def gaussian_blur(image, sigma, radius=6):
    """Blurs with a standard deviation of `sigma` pixels, at most a third of `radius`."""
    offsets = tf.range(-radius, radius + 1, dtype=tf.float32)
    weights = tf.exp(-0.5 * (offsets / sigma) ** 2)
    weights /= tf.reduce_sum(weights)
    channels = image.shape[-1]
    kernel = tf.tile(weights[:, None, None, None], (1, 1, channels, 1))
    image = tf.pad(image, ((radius, radius), (radius, radius), (0, 0)), "REFLECT")[None]
    for along in (kernel, tf.transpose(kernel, (1, 0, 2, 3))):
        image = tf.nn.depthwise_conv2d(image, along, (1, 1, 1, 1), "VALID")
    return image[0]


def color_jitter(image, strength, seed):
    """Changes brightness, contrast and saturation, in random order.

    Each factor is drawn between 1 - `strength` and 1 + `strength`.
    """
    order, factors = tf.unstack(tf.random.split(seed, 2))
    order = tf.random.experimental.stateless_shuffle(tf.range(3), order)
    factors = tf.random.stateless_uniform((3,), factors, max(0.0, 1 - strength), 1 + strength)

    def towards(other, image, factor):
        return tf.clip_by_value(other + factor * (image - other), 0.0, 255.0)

    for index in range(3):
        factor = factors[index]
        image = tf.switch_case(
            order[index],
            [
                lambda image=image, factor=factor: towards(0.0, image, factor),
                lambda image=image, factor=factor: towards(
                    tf.reduce_mean(_gray(image)), image, factor
                ),
                lambda image=image, factor=factor: towards(_gray(image), image, factor),
            ],
        )
    return image


def random_erasing(image, rate, seed):
    """With probability `rate`, replaces a box of 2 to 33% of a normalized image by noise."""
    erase, box, noise = tf.unstack(tf.random.split(seed, 3))
    height, width = image.shape[0], image.shape[1]
    top, left, box_height, box_width, found = random_box(
        height, width, (0.02, 1 / 3), (0.3, 1 / 0.3), box
    )

    def erased():
        mask = box_mask(height, width, top, left, box_height, box_width)
        return tf.where(mask, tf.random.stateless_normal(image.shape, noise), image)

    return tf.cond(found & (tf.random.stateless_uniform((), erase) < rate), erased, lambda: image)


def mix(images, labels, mixup_alpha, cutmix_alpha, seed):
    """Applies MixUp or CutMix to a batch: mixes it with itself in reverse order, labels too."""
    switch, share, place = tf.unstack(tf.random.split(seed, 3))
    if mixup_alpha and cutmix_alpha:
        cuts = tf.random.stateless_uniform((), switch) < 0.5
    else:
        cuts = tf.constant(bool(cutmix_alpha))
    kept = _beta(tf.where(cuts, cutmix_alpha, mixup_alpha), share)
    height, width = images.shape[1], images.shape[2]

    def cut():
        sides = tf.sqrt(1 - kept) * tf.constant((height, width), tf.float32)
        half = tf.cast(sides, tf.int32) // 2
        center = tf.cast(
            tf.random.stateless_uniform((2,), place) * tf.constant((height, width), tf.float32),
            tf.int32,
        )
        start, end = tf.maximum(center - half, 0), tf.minimum(center + half, (height, width))
        mask = box_mask(height, width, start[0], start[1], end[0] - start[0], end[1] - start[1])
        return tf.where(mask, images[::-1], images), 1 - tf.reduce_mean(tf.cast(mask, tf.float32))

    mixed, kept = tf.cond(cuts, cut, lambda: (kept * images + (1 - kept) * images[::-1], kept))
    return mixed, kept * labels + (1 - kept) * labels[::-1]


def _beta(alpha, seed):
    first, second = tf.unstack(tf.random.stateless_gamma((2,), seed, alpha))
    return first / (first + second)


def random_box(height, width, scale, ratio, seed, tries=10):
    """Draws boxes of random area and aspect ratio and returns the first that fits the image.

    Returns:
        (top, left, height, width, whether any box fits).
    """
    seeds = tf.unstack(tf.random.split(seed, 4))
    area = tf.cast(height * width, tf.float32) * tf.random.stateless_uniform(
        (tries,), seeds[0], *scale
    )
    aspect = tf.exp(
        tf.random.stateless_uniform((tries,), seeds[1], math.log(ratio[0]), math.log(ratio[1]))
    )
    heights = tf.cast(tf.round(tf.sqrt(area / aspect)), tf.int32)
    widths = tf.cast(tf.round(tf.sqrt(area * aspect)), tf.int32)
    fits = (heights > 0) & (widths > 0) & (heights <= height) & (widths <= width)
    first = tf.argmax(tf.cast(fits, tf.int32))
    box_height, box_width = heights[first], widths[first]
    top, left = (
        tf.cast(tf.random.stateless_uniform((), seed) * tf.cast(room + 1, tf.float32), tf.int32)
        for seed, room in ((seeds[2], height - box_height), (seeds[3], width - box_width))
    )
    return top, left, box_height, box_width, tf.reduce_any(fits)


def box_mask(height, width, top, left, box_height, box_width):
    """Boolean mask of shape (height, width, 1), true inside the box."""
    rows, columns = tf.range(height)[:, None, None], tf.range(width)[None, :, None]
    return (
        (rows >= top) & (rows < top + box_height) & (columns >= left) & (columns < left + box_width)
    )


def _gray(image):
    return tf.reduce_sum(image * _GRAY, axis=-1, keepdims=True)


def _resize(image, size):
    """Resizes and rounds to integers, as Pillow does."""
    image = tf.image.resize(image, size, "bicubic", antialias=True)
    return tf.round(tf.clip_by_value(image, 0.0, 255.0))
