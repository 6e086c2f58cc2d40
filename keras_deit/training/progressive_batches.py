"""Batches of images that grow while the model trains."""

from keras_deit.arguments import check_non_negative_int, check_positive_int
from keras_deit.training.batches import training_batches


def progressive_batches(
    dataset,
    recipe,
    converter,
    num_classes,
    batch_size,
    image_sizes,
    num_batches,
    start=0,
    num_shards=1,
    **options,
):
    """As `training_batches`, at one image size after the other.

    A training that begins with small images takes less time. Each size gets an equal share of
    `num_batches`, in the order of `image_sizes`; batches beyond have the last size. The model needs
    `image_shape=(None, None, channels)`. It compiles once for each size.

    Args:
        dataset, recipe, num_classes, batch_size: see `training_batches`.
        converter: the `DeiTImageConverter` of the model. Its size is not used.
        image_sizes: the sizes in pixels, each an int or (height, width).
        num_batches: int, number of batches of the whole training: epochs times steps.
        start: int, number of images that the training has already used, over all processes: a
            multiple of the batch size over all processes. Defaults to 0.
        num_shards: see `training_batches`.
        **options: the other arguments of `training_batches`.

    Returns:
        Endless `tf.data.Dataset` of (images, labels), see `training_batches`.

    Raises:
        ValueError: as `training_batches`; or if there are more sizes than batches, or `start` is in
            the middle of a batch.

    Example:

    ```python
    classifier = DeiTImageClassifier.from_preset(
        "deit_tiny_patch16_224", image_shape=(None, None, 3), num_classes=2
    )
    converter, classifier.preprocessor = classifier.preprocessor, None
    training = progressive_batches(
        photos, recipe.augmentation, converter, 2, 64, (128, 176, 224), epochs * steps
    )
    classifier.fit(training, steps_per_epoch=steps, epochs=epochs, shuffle=False)
    ```

    Reference: [Tan & Le, 2021](https://arxiv.org/abs/2104.00298), section 4, without its change of
        the augmentation.
    """
    num_batches = check_positive_int("num_batches", num_batches)
    batch_size = check_positive_int("batch_size", batch_size)
    num_shards = check_positive_int("num_shards", num_shards)
    start = check_non_negative_int("start", start)
    if not isinstance(image_sizes, (tuple, list)):
        raise ValueError(
            "`image_sizes` must be several sizes, such as (128, 176, 224). Received: "
            f"image_sizes={image_sizes!r}"
        )
    if not image_sizes or len(image_sizes) > num_batches:
        raise ValueError(
            "`image_sizes` must have at least one size, and at most one for each batch. Received: "
            f"image_sizes={image_sizes!r}, num_batches={num_batches}"
        )
    first, rest = divmod(start, batch_size * num_shards)
    if rest:
        raise ValueError(
            "`start` must be a multiple of the batch size over all processes, "
            f"{batch_size * num_shards}. Received: start={start}"
        )
    ends = [num_batches * (index + 1) // len(image_sizes) for index in range(len(image_sizes))]
    found = None
    for image_size, end in zip(image_sizes, ends, strict=True):
        is_last = end == num_batches
        if first >= end and not is_last:
            continue
        sized = type(converter).from_config({**converter.get_config(), "image_size": image_size})
        batches = training_batches(
            dataset,
            recipe,
            sized,
            num_classes,
            batch_size,
            start=first * batch_size * num_shards,
            num_shards=num_shards,
            **options,
        )
        if not is_last:
            batches = batches.take(end - first)
        found = batches if found is None else found.concatenate(batches)
        first = end
    return found
