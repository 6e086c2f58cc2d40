"""Batches for `fit` and `evaluate`, made in `tf.data` on every Keras backend."""

from keras_deit.training import augmentation
from keras_deit.training.rand_augment import rand_augment
from keras_deit.training.require_tensorflow import tf


def training_batches(
    dataset,
    recipe,
    converter,
    num_classes,
    batch_size,
    shuffle_buffer_size=1000,
    read=None,
    seed=0,
    start=0,
    num_shards=1,
    shard=0,
):
    """Endless augmented batches to train on: pass `steps_per_epoch` to `fit`.

    For a given seed, the n-th image of a training is always the same, even if the training resumed
    in between or is shared by several processes.

    Args:
        dataset: `tf.data.Dataset` of known length with unbatched elements (image, label). Images
            have shape (height, width, channels), may differ in size, and hold 0 to 255. Labels are
            integers or one value per class. Do not shuffle it: this function does.
        recipe: the `Augmentation` of a `Recipe`.
        converter: the `DeiTImageConverter` of the model. The batches have its size, mean, std and
            data format, but not its center crop. Train the model with `preprocessor=None`.
        num_classes: int, number of classes.
        batch_size: int, number of images per batch and process.
        shuffle_buffer_size: int, number of elements in the shuffle buffer. For file paths, use the
            length of the dataset. Defaults to 1000.
        read: function from an element of `dataset` to (image, label), called after shuffling. Use
            it to shuffle file paths instead of decoded images: see `image_reader`.
        seed: int, seed of order and augmentation. Defaults to 0.
        start: int, number of images that the training has already used, over all processes. Pass
            it to resume. Defaults to 0.
        num_shards, shard: the number of processes that train together, and the index of this one.
            Each process reads only its own images.

    Returns:
        `tf.data.Dataset` of (images, labels): normalized images of shape (batch_size, height,
        width, channels), and float labels of shape (batch_size, num_classes).

    Raises:
        ValueError: if the length of the dataset is unknown, its elements are not (image, label),
            or the augmentation needs 3 channels.
        tf.errors.InvalidArgumentError: while reading, if an image contains NaN or a label is not a
            class.
    """
    mean, std = (tf.constant(values, tf.float32) for values in (converter.mean, converter.std))

    def one(number, element):
        image, label = element
        if image.dtype.is_floating:
            image = tf.debugging.check_numerics(image, "Images must contain numbers from 0 to 255.")
        # The 2 keeps the seeds of images apart from those of batches, which have a 3.
        seeds = tf.random.split(tf.random.fold_in(tf.stack([seed, 2]), number), 6)
        crop = (
            augmentation.padded_crop
            if recipe.crop == "padded"
            else augmentation.random_resized_crop
        )
        image = crop(image, converter.image_size, seeds[0])
        image = tf.image.stateless_random_flip_left_right(image, seeds[1])
        if recipe.rand_augment:
            image = rand_augment(image, seeds[5])
        if recipe.three_augment:
            image = augmentation.three_augment(image, seeds[2])
        if recipe.color_jitter:
            image = augmentation.color_jitter(image, recipe.color_jitter, seeds[3])
        image = (image / 255.0 - mean) / std
        if recipe.erasing_rate:
            image = augmentation.random_erasing(image, recipe.erasing_rate, seeds[4])
        return number, image, _one_hot(label, num_classes)

    def many(numbers, images, labels):
        if recipe.mixup_alpha or recipe.cutmix_alpha:
            batch_seed = tf.random.fold_in(tf.stack([seed, 3]), numbers[0])
            images, labels = augmentation.mix(
                images, labels, recipe.mixup_alpha, recipe.cutmix_alpha, batch_seed
            )
        if converter.data_format == "channels_first":
            images = tf.transpose(images, (0, 3, 1, 2))
        return images, labels

    dataset = _numbered(dataset, shuffle_buffer_size, recipe.repeats, seed, start)
    dataset = dataset.shard(num_shards, shard)
    if read is not None:
        dataset = dataset.map(
            lambda number, element: (number, read(element)), tf.data.AUTOTUNE, deterministic=True
        )
    _check_elements(dataset.element_spec[1], recipe, num_classes)
    dataset = dataset.map(one, tf.data.AUTOTUNE, deterministic=True).batch(
        batch_size, drop_remainder=True
    )
    return dataset.map(many, tf.data.AUTOTUNE, deterministic=True).prefetch(tf.data.AUTOTUNE)


def _numbered(dataset, shuffle_buffer_size, repeats, seed, start):
    """Endless (number, element), starting at `start`, in a new order on every pass.

    With repeated augmentation an element comes `repeats` times in a row, so an epoch of the same
    length contains fewer different images. As in the official code, the copies are in one batch or
    on the shards of one batch.
    """
    length = _known_length(dataset)

    def one_pass(number):
        # `shuffle` also uses the seed of the graph. A fixed one makes the order independent of
        # `keras.utils.set_random_seed`.
        tf.compat.v1.set_random_seed(1)
        elements = dataset.shuffle(
            shuffle_buffer_size, seed=seed + number, reshuffle_each_iteration=False
        )
        return elements.flat_map(
            lambda *element: tf.data.Dataset.from_tensors(_as_one(element)).repeat(repeats)
        )

    first_pass, seen = divmod(start, length * repeats)
    passes = tf.data.Dataset.range(first_pass, tf.int64.max)
    dataset = passes.flat_map(one_pass).skip(seen).enumerate(start)
    return dataset.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))


def _as_one(element):
    return element if len(element) > 1 else element[0]


def _check_elements(spec, recipe, num_classes):
    if (
        not isinstance(spec, tuple)
        or len(spec) != 2
        or spec[0].shape.rank != 3
        or spec[1].shape not in ((), (num_classes,))
    ):
        raise ValueError(
            "`dataset` must have unbatched elements (image, label), with images of shape (height, "
            f"width, channels) and labels that are integers or {num_classes} values. Received: "
            f"elements of {spec}"
        )
    channels = spec[0].shape[-1]
    of_colors = recipe.rand_augment or recipe.three_augment or recipe.color_jitter
    if channels is None or (of_colors and channels != 3):
        raise ValueError(
            "RandAugment, 3-Augment and color jitter need images with 3 channels. Convert the "
            "images to RGB, or set their shape with `tf.ensure_shape`. Received: images of shape "
            f"{tuple(spec[0].shape)}"
        )


def evaluation_batches(
    dataset, converter, num_classes, batch_size, read=None, num_shards=1, shard=0
):
    """Batches to evaluate on, converted as for prediction.

    All batches have the same size, so that nothing is compiled twice: the last one is filled with
    images of weight 0.

    Args:
        dataset, converter, num_classes, batch_size, read: see `training_batches`.
        num_shards, shard: see `training_batches`. Every process gets the same number of batches.

    Returns:
        `tf.data.Dataset` of (images, labels, weights): labels of shape (batch_size, num_classes),
        weights of shape (batch_size,) for `weighted_metrics`, 1 for images and 0 for filling.
    """
    length = _known_length(dataset)
    missing = -length % (batch_size * num_shards)
    # The filling is the first images again.
    weights = tf.data.Dataset.range(length + missing).map(
        lambda index: tf.cast(index < length, tf.float32)
    )
    dataset = tf.data.Dataset.zip(dataset.repeat(), weights).shard(num_shards, shard)

    def one(element, weight):
        image, label = element if read is None else read(element)
        if converter.data_format == "channels_first":
            image = tf.transpose(image, (2, 0, 1))
        return converter(image), _one_hot(label, num_classes), weight

    dataset = dataset.map(one, tf.data.AUTOTUNE, deterministic=True)
    return dataset.batch(batch_size, drop_remainder=True).prefetch(tf.data.AUTOTUNE)


def _one_hot(label, num_classes):
    label = tf.convert_to_tensor(label)
    if label.shape.rank:
        return tf.cast(label, tf.float32)
    # `tf.one_hot` would silently return zeros.
    message = f"Labels must be from 0 to {num_classes - 1}."
    with tf.control_dependencies(
        [
            tf.debugging.assert_non_negative(label, message),
            tf.debugging.assert_less(label, tf.cast(num_classes, label.dtype), message),
        ]
    ):
        return tf.one_hot(label, num_classes)


def _known_length(dataset):
    length = int(dataset.cardinality())
    if length <= 0:
        raise ValueError(
            "`dataset` must have a known length above 0. Set it with "
            "`dataset.apply(tf.data.experimental.assert_cardinality(length))`. Received: a dataset "
            f"of cardinality {length}"
        )
    return length
