"""What `fit` takes: batches made in `tf.data`, whatever Keras' backend is."""

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
    """Batches to train on, without end: give `fit` its `steps_per_epoch`.

    Image number n of the training is the same for a seed, wherever the training started and however
    many processes share it.

    Args:
        dataset: `tf.data.Dataset` of known length, of (image (H, W, channels), 0 to 255, of any
            size; label, an integer or a value for each class), the same in each pass: it is
            shuffled here.
        recipe: `Augmentation`, as a `Recipe` has it.
        converter: `DeiTImageConverter` of the model. Its size, mean, std and data format are those
            of the batches; its centre crop is left to evaluation. The model is trained with
            `preprocessor=None`.
        num_classes: int.
        batch_size: int.
        shuffle_buffer_size: elements of `dataset` in memory from which the next is drawn. All of
            them, where they are small. Defaults to 1000.
        read: function from an element of `dataset` to (image, label), where it is a file's name,
            say. It is called after shuffling.
        seed: int.
        start: number of the first image, to go on with a training: batches seen times their size,
            of all shards.
        num_shards, shard: processes that share the work, and which of them this is. Each reads its
            images alone; `batch_size` is of one.

    Returns:
        `tf.data.Dataset` of (images (batch_size, height, width, channels), normalised; labels
        (batch_size, num_classes), float).

    Raises:
        ValueError: the length of the dataset is not known, it is not of single images and labels,
            or their channels do not suit the augmentation.
        tf.errors.InvalidArgumentError: when it is read, an image with NaN, or a label that is no
        class.
    """
    mean, std = (tf.constant(values, tf.float32) for values in (converter.mean, converter.std))

    def one(number, element):
        image, label = element
        if image.dtype.is_floating:
            image = tf.debugging.check_numerics(image, "An image must hold levels from 0 to 255.")
        # 2, for one image; 3, for a batch.
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
    """(number, element) from number `start` on: pass after pass, each in another order.

    Repeated augmentation has each element several times in a row, so that an epoch, as long as
    without, sees fewer. The copies meet in one batch, or on the shards of one, as in the official
    code.
    """
    length = _known_length(dataset)

    def one_pass(number):
        # The seed of this graph alone: `shuffle` mixes it in, and `keras.utils.set_random_seed`
        # should not matter here.
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
            "`dataset` must be of single images and labels, (image (H, W, channels), label), "
            "before any batching, labels as integers or as "
            f"{num_classes} values. Received: a dataset of {spec}"
        )
    channels = spec[0].shape[-1]
    of_colors = recipe.rand_augment or recipe.three_augment or recipe.color_jitter
    if channels is None or (of_colors and channels != 3):
        raise ValueError(
            "RandAugment, 3-Augment and colour jitter are of images with 3 channels, and the "
            "number of channels must be known. "
            f"Received: images of shape {tuple(spec[0].shape)}"
        )


def evaluation_batches(
    dataset, converter, num_classes, batch_size, read=None, num_shards=1, shard=0
):
    """Batches to evaluate on, converted as for prediction, all of one size: what is missing from
    the last has no weight.

    Args:
        dataset, converter, num_classes, batch_size, read: as of `training_batches`.
        num_shards, shard: as of `training_batches`. Every process has as many batches.

    Returns:
        `tf.data.Dataset` of (images, labels (batch_size, num_classes), weights (batch_size,), 1 or
        0): for `weighted_metrics`.
    """
    length = _known_length(dataset)
    missing = -length % (batch_size * num_shards)
    # The first images again, for want of others.
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
    # `tf.one_hot` would give zeros.
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
            "`dataset` must have a known length, above 0: see `tf.data.Dataset.cardinality` and "
            "`apply(tf.data.experimental."
            f"assert_cardinality(length))`. Received: a dataset of cardinality {length}"
        )
    return length
