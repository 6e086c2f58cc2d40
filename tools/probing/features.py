"""Features of a frozen model: computed once, kept on disk, and resumed after an interruption.

`features` in the folder of --output has `settings.json`, which says what the features belong to,
and a safetensors file for every 2048 images, such as `train_00003.safetensors`.
"""

import hashlib
import json
import zlib

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from keras_deit.atomic import atomic_file
from keras_deit.models import DeiTImageClassifier
from keras_deit.presets import find_preset, read_tensors
from keras_deit.presets.safetensors_file import write_tensors
from keras_deit.training.image_reader import image_reader

IMAGES_PER_SHARD = 2048
POOLINGS = ("token", "mean", "token_and_mean")
# Arguments of a backbone that change only its training. --dtype_policy replaces the dtype.
_NOT_IN_FEATURES = {
    "name",
    "trainable",
    "dtype",
    "remat",
    "dropout_rate",
    "attention_dropout_rate",
    "drop_path_rate",
    "drop_path_schedule",
    "patch_dropout_rate",
}


def load_classifier(handle, pooling=None, **overrides):
    """The classifier whose head reads the features, with the preset's preprocessor.

    Args:
        handle: preset of a classifier or a backbone.
        pooling: one of `POOLINGS`, or `None` for what the preset's head reads: of a distilled
            model, both of its tokens. A preset without a head has the class token.
        **overrides: arguments of `from_preset`.
    """
    if find_preset(handle, load_weights=False).has_head:
        classifier = DeiTImageClassifier.from_preset(handle, **overrides)
    else:
        classifier = _with_any_head(handle, overrides)
    if classifier.preprocessor is None:
        raise ValueError(
            "The preset has no preprocessor. Save it as a `DeiTImageClassifier` with "
            "`preprocessor=DeiTImageConverter(...)`."
        )
    if pooling is not None:
        classifier = DeiTImageClassifier(
            classifier.backbone,
            num_classes=1,
            pooling=pooling,
            use_distillation_head=False,
            preprocessor=classifier.preprocessor,
        )
    return classifier


def _with_any_head(handle, overrides):
    """The head is not used, so that it has random weights is no warning."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        return DeiTImageClassifier.from_preset(handle, num_classes=1, **overrides)
    finally:
        logging.set_verbosity(verbosity)


def feature_model(classifier):
    """Normalised images to what the head reads: features (batch, features)."""
    # A distilled model's head reads two tokens, (batch, 2, hidden_dim).
    features = keras.layers.Reshape((-1,))(classifier.head.input)
    return keras.Model(classifier.input, features, name="features")


def model_settings(classifier):
    """{name: value} of what the features of a classifier depend on: weights and architecture."""
    backbone = classifier.backbone.get_config()
    return {
        "weights": weights_digest(feature_model(classifier)),
        "pooling": classifier.pooling,
        "use_distillation_head": classifier.use_distillation_head,
        **{name: value for name, value in backbone.items() if name not in _NOT_IN_FEATURES},
    }


def weights_digest(model):
    """A digest of all weights, wherever they were loaded from."""
    digest = hashlib.sha256()
    for variable in model.weights:
        digest.update(np.ascontiguousarray(keras.ops.convert_to_numpy(variable)).tobytes())
    return digest.hexdigest()[:12]


class FeatureCache:
    """The features of a training and a validation set, in a folder.

    Args:
        directory: `pathlib.Path`.
        settings: dict that says what the features belong to.

    Raises:
        ValueError: if the folder has features of something else.
    """

    def __init__(self, directory, settings):
        self.directory = directory
        settings = json.loads(json.dumps(settings))  # tuples become lists
        path = directory / "settings.json"
        if path.exists():
            self._check(path, settings)
        else:
            with atomic_file(path) as file:
                file.write_text(json.dumps(settings, indent=4))

    def _check(self, path, settings):
        try:
            before = json.loads(path.read_text())
            if before.keys() != settings.keys():
                raise ValueError("Other settings.")
        except (ValueError, AttributeError) as error:
            raise ValueError(
                f"{path} is damaged or of another version. Delete the folder {self.directory} to "
                "compute the features again."
            ) from error
        changed = [
            f"{name} was {before[name]!r} and is {value!r}"
            for name, value in settings.items()
            if before[name] != value
        ]
        if changed:
            raise ValueError(
                f"{self.directory} has features of another model, of other images or with other "
                "settings. Use the same flags, or another --output. Received: "
                f"{'; '.join(changed)}"
            )

    def features(self, part, images, model, converter, batch_size):
        """(features (N, D), float32; labels (N,)) of all images. Computes those that are missing.

        Args:
            part: name of the files, `"train"` or `"val"`.
            images: `ImageFolder` or `TfdsImages`.
            model: see `feature_model`.
            converter: the classifier's preprocessor.
            batch_size: int, number of images per batch.

        Raises:
            ValueError: if a file of the cache is damaged, an image cannot be read, a label is not a
                class, or a feature is not a number.
        """
        num_images, width = len(images), model.output_shape[-1]
        features = np.empty((num_images, width), "float32")
        labels = np.empty(num_images, "int64")
        missing = []
        for rows in _shards(0, num_images):
            if self._file(part, rows).exists():
                shape = (rows.stop - rows.start, width)
                found = _read(self._file(part, rows), shape, len(images.class_names))
                features[rows], labels[rows] = found
            else:
                missing.append(rows)
        to_do = sum(rows.stop - rows.start for rows in missing)
        print(f"{part}: features of {num_images - to_do} of {num_images} images are there")
        bar = keras.utils.Progbar(to_do, unit_name="image")
        for start, stop in _runs(missing):
            shards = _shards(start, stop)
            rows = next(shards)
            for seen, *found in _compute(images, start, stop, model, converter, batch_size):
                batch = slice(seen - len(found[0]), seen)
                features[batch], labels[batch] = found
                while rows is not None and seen >= rows.stop:
                    _write(self._file(part, rows), features[rows], labels[rows])
                    rows = next(shards, None)
                bar.add(len(found[0]))
        return features, labels

    def _file(self, part, rows):
        return self.directory / f"{part}_{rows.start // IMAGES_PER_SHARD:05d}.safetensors"


def _shards(start, stop):
    """The rows of each file. `start` is where a file begins."""
    for first in range(start, stop, IMAGES_PER_SHARD):
        yield slice(first, min(first + IMAGES_PER_SHARD, stop))


def _runs(missing):
    """(start, stop) of neighbouring shards, which share a pipeline: finding an image in a dataset
    of encoded images means reading all before it.
    """
    runs = []
    for rows in missing:
        if runs and runs[-1][1] == rows.start:
            runs[-1][1] = rows.stop
        else:
            runs.append([rows.start, rows.stop])
    return runs


def _write(file, features, labels):
    with atomic_file(file) as new:
        checksum = np.array([zlib.crc32(features), zlib.crc32(labels)], "int64")
        write_tensors(new, {"features": features, "labels": labels, "crc32": checksum})


def _read(file, shape, num_classes):
    try:
        found = read_tensors(file)
        features, labels, checksum = (found[name] for name in ("features", "labels", "crc32"))
        if (features.shape, labels.shape) != (shape, shape[:1]):
            raise ValueError(f"it has features of shape {features.shape} instead of {shape}")
        if checksum.tolist() != [zlib.crc32(np.ascontiguousarray(a)) for a in (features, labels)]:
            raise ValueError("its checksum is wrong")
        if not 0 <= labels.min() <= labels.max() < num_classes:
            raise ValueError(f"its labels are not all from 0 to {num_classes - 1}")
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"The features in {file} are damaged. Delete this file and start again with the same "
            "flags; only its images are computed again."
        ) from error
    return features, labels


def _compute(images, start, stop, model, converter, batch_size):
    """Yields (number of the image after the batch, features, labels) for each batch."""
    unreadable, num_classes = {}, len(images.class_names)
    is_channels_first = converter.data_format == "channels_first"
    shape = model.input_shape[1:]
    read = image_reader(images, shape[0 if is_channels_first else -1], unreadable=unreadable)

    def convert(*element):
        image, label = read(element)
        return converter(tf.transpose(image, (2, 0, 1)) if is_channels_first else image), label

    dataset = images.dataset().skip(start).take(stop - start)
    dataset = dataset.map(convert, tf.data.AUTOTUNE, deterministic=True)
    dataset = dataset.batch(batch_size).prefetch(tf.data.AUTOTUNE)
    seen = start
    for inputs, labels in dataset.as_numpy_iterator():
        seen += len(labels)
        for number, reason in unreadable.items():
            if number < seen:
                raise ValueError(f"{reason} Then start again to resume.")
        for label in labels[(labels < 0) | (labels >= num_classes)][:1]:
            raise ValueError(
                f"The labels of {images.identity} must be from 0 to {num_classes - 1}. Choose a "
                f"dataset whose validation images are labelled. Received: {label}"
            )
        # All batches have one size, so that nothing is compiled twice.
        filling = np.repeat(inputs[-1:], batch_size - len(inputs), axis=0)
        outputs = model.predict_on_batch(np.concatenate([inputs, filling]))
        features = np.asarray(outputs, "float32")[: len(labels)]
        if not np.isfinite(features).all():
            raise ValueError("The features are not finite. Use another --dtype_policy.")
        yield seen, features, labels
