"""Raw images into `fit`, `evaluate` and `predict`: the preprocessor runs on each batch before the
model sees it.
"""

import itertools
import os
import types
import warnings

import keras

from keras_deit.images import check_file, is_picture
from keras_deit.layers.deit_image_converter import DeiTImageConverter
from keras_deit.models.converted_batches import (
    ConvertedArrays,
    ConvertedDataset,
    ConvertedLoader,
    ConvertedPictures,
    convert_batch,
    convert_loaded,
    from_torch,
    has_length,
    is_loader,
    map_arrays,
    to_numpy,
)
from keras_deit.models.label_checks import check_labels

_FIRST = 32  # images of an array, looked at before any is converted


class RawImageInputs:
    """Mixed into a model with a `preprocessor`: its training and prediction methods take raw
    images.

    Arrays, `tf.data`, `keras.utils.PyDataset`, PyTorch's `DataLoader` and generators are taken; by
    `predict` also a path, an image of Pillow, and a list of these and of arrays, each of a size of
    its own. With `preprocessor=None` the methods are those of `keras.Model`.
    """

    _takes_named_images = False  # whether `x` may be a dictionary of arrays

    def _get_classifier(self):
        """Whose images and classes these are. No property: Keras would save the model inside
        itself.
        """
        return self

    def _images_of(self, inputs):
        return inputs

    def _converter(self, training):
        """From raw images to what the model takes."""
        return self.preprocessor

    def fit(
        self,
        x=None,
        y=None,
        batch_size=None,
        epochs=1,
        verbose="auto",
        callbacks=None,
        validation_split=0.0,
        validation_data=None,
        shuffle=True,
        class_weight=None,
        sample_weight=None,
        **kwargs,
    ):
        x = self._checked(x, y)
        if isinstance(validation_data, (tuple, list)):
            self._checked(*validation_data[:2])
        elif validation_data is not None:
            validation_data = self._checked(validation_data)
        if self.preprocessor is not None:
            if validation_split and validation_data is None:
                if not self._are_arrays(x):
                    raise ValueError(
                        "`validation_split` is for arrays. Split the dataset before, and give "
                        "`validation_data`. "
                        f"Received: x={type(x).__name__}"
                    )
                (x, y, sample_weight), validation_data = _split(
                    validation_split, x, y, sample_weight
                )
                validation_split = 0.0
            if validation_data is not None:
                validation_batch_size = kwargs.get("validation_batch_size") or batch_size
                if isinstance(validation_data, (tuple, list)):
                    validation_data = self._convert(
                        *validation_data, batch_size=validation_batch_size
                    )
                else:
                    validation_data = self._convert(validation_data)
            x = self._convert(x, y, sample_weight, batch_size, shuffle, training=True)
            y = sample_weight = batch_size = None
            # Arrays are shuffled in the conversion, and the rest but for `PyDataset` shuffles
            # itself.
            shuffle = shuffle and isinstance(x, ConvertedDataset)
        return super().fit(
            x,
            y,
            batch_size=batch_size,
            epochs=epochs,
            verbose=verbose,
            callbacks=callbacks,
            validation_split=validation_split,
            validation_data=validation_data,
            shuffle=shuffle,
            class_weight=class_weight,
            sample_weight=sample_weight,
            **kwargs,
        )

    def evaluate(
        self, x=None, y=None, batch_size=None, verbose="auto", sample_weight=None, **kwargs
    ):
        # With this keyword, `fit` hands on its validation data, which are checked and converted
        # already.
        if "_use_cached_eval_dataset" not in kwargs:
            x = self._checked(x, y)
            if self.preprocessor is not None:
                x = self._convert(x, y, sample_weight, batch_size)
                y = sample_weight = batch_size = None
        return super().evaluate(
            x, y, batch_size=batch_size, verbose=verbose, sample_weight=sample_weight, **kwargs
        )

    def predict(self, x, batch_size=None, **kwargs):
        pictures = [x] if is_picture(x) else x
        if isinstance(pictures, (list, tuple)) and (
            self.preprocessor is not None or any(map(is_picture, pictures))
        ):
            self._check_pictures(pictures)
            backbone = self._get_classifier().backbone
            converter = self._converter(training=False)
            x = ConvertedPictures(
                converter, pictures, backbone.image_shape, backbone.data_format, batch_size or 32
            )
            batch_size = None
        elif self.preprocessor is not None:
            x = self._checked(x, labels_matter=False)
            x, batch_size = self._convert(x, batch_size=batch_size), None
        return super().predict(x, batch_size=batch_size, **kwargs)

    def train_on_batch(self, x, *args, **kwargs):
        return super().train_on_batch(self._convert_images(x, training=True), *args, **kwargs)

    def test_on_batch(self, x, *args, **kwargs):
        return super().test_on_batch(self._convert_images(x), *args, **kwargs)

    def predict_on_batch(self, x):
        return super().predict_on_batch(self._convert_images(x))

    def _are_arrays(self, data):
        return hasattr(data, "shape") or (self._takes_named_images and isinstance(data, dict))

    def _checked(self, data, y=None, labels_matter=True):
        """The data. Images and labels that do not fit are refused before anything is compiled: an
        error in a step costs JAX the weights.
        """
        original = data
        if hasattr(data, "element_spec"):
            images, y = _images_and_labels(data.element_spec)
        elif isinstance(data, keras.utils.PyDataset):
            images, y = _images_and_labels(data[0])
        elif is_loader(data) or isinstance(data, types.GeneratorType):
            batches = iter(data)
            first = list(itertools.islice(batches, 1))
            if data is batches:
                # Still a generator, for Keras.
                original = (batch for batch in itertools.chain(first, data))
            if not first:
                return original
            images, y = _images_and_labels(map_arrays(from_torch, first[0]))
        elif self._are_arrays(data):
            images = data
        else:
            return data
        if self.preprocessor is not None:
            images = self._images_of(images)
            self._check_images(images)
            if not hasattr(data, "element_spec"):
                self._warn_of_fractions(images)
        loss = getattr(self, "loss", None)
        if labels_matter and loss is not None:
            is_array = isinstance(y, list) or hasattr(y, "__array__")
            check_labels(loss, self._get_classifier().num_classes, to_numpy(y) if is_array else y)
        return original

    def _check_pictures(self, pictures):
        """All of them, before the first is read."""
        if self.preprocessor is None:
            raise ValueError(
                "Only a model with a preprocessor reads files and images of Pillow. Give it one, "
                "`preprocessor=DeiTImageConverter(...)`, or "
                f"give converted arrays. Received: {next(filter(is_picture, pictures))!r}"
            )
        if not pictures:
            raise ValueError("Give one image at least. Received: an empty list")
        axis, channels, axes = self._expected_axes()
        for picture in pictures:
            if is_picture(picture):
                if channels not in (1, 3):
                    raise ValueError(
                        "Files and images of Pillow are read in gray or RGB, and the model takes "
                        f"{channels} channels. Give arrays ({axes})."
                    )
                if isinstance(picture, (str, os.PathLike)):
                    check_file(picture)
            elif not hasattr(picture, "shape"):
                raise TypeError(
                    f"A list holds images: paths, images of Pillow, or arrays ({axes}). Received: "
                    f"{type(picture).__name__} in it"
                )
            elif isinstance(self.preprocessor, DeiTImageConverter) and (
                len(picture.shape) != 3 or picture.shape[axis - 1] != channels
            ):
                raise ValueError(
                    f"Arrays in a list are one image each, ({axes}); a batch is one array. "
                    f"Received: an array of shape {tuple(picture.shape)}"
                )
        arrays = [picture for picture in pictures if not is_picture(picture)]
        if arrays:
            self._warn_of_fractions(arrays[0][None])

    def _expected_axes(self):
        """Of a batch: the axis of the channels, how many, and those of an image in words."""
        backbone = self._get_classifier().backbone
        if backbone.data_format == "channels_first":
            return 1, backbone.image_shape[0], f"{backbone.image_shape[0]}, height, width"
        return 3, backbone.image_shape[2], f"height, width, {backbone.image_shape[2]}"

    def _check_images(self, images):
        """Of the preprocessor of this package; another may take other images."""
        shape = getattr(images, "shape", None)
        if (
            not isinstance(self.preprocessor, DeiTImageConverter)
            or shape is None
            or getattr(shape, "rank", 4) is None
        ):
            return  # a tf.data.Dataset may not know even the rank
        axis, channels, axes = self._expected_axes()
        if len(shape) != 4:
            advice = "For one image give `images[None]`, for a dataset `dataset.batch(32)`, and keep the axis of the channels, also of one."
        elif shape[axis] not in (channels, None):
            advice = "Convert the images, or load the model for theirs, with another `image_shape`."
        elif shape[0] == 0:
            advice = "Give one at least."
        else:
            return
        raise ValueError(
            f"Images must come in batches of shape (batch, {axes}). {advice} Received: images of "
            f"shape {tuple(shape)}"
        )

    def _warn_of_fractions(self, images):
        """Of levels up to 1, nothing is left but black."""
        if not isinstance(self.preprocessor, DeiTImageConverter) or "float" not in str(
            images.dtype
        ):
            return
        first = to_numpy(images[:_FIRST])
        if 0 < first.max() <= 1:
            warnings.warn(
                "Raw images have levels from 0 to 255, and these have none above 1, as if they "
                "were scaled already. Give them as they "
                "were: `255 * images` if they are from 0 to 1, `127.5 * (images + 1)` if they are "
                "from -1 to 1. "
                f"Received: levels from {first.min():.3g} to {first.max():.3g}",
                stacklevel=4,
            )

    def _convert_images(self, images, training=False):
        if self.preprocessor is None:
            return images
        self._check_images(self._images_of(images))
        return self._converter(training)(images)

    def _convert(
        self, data, y=None, sample_weight=None, batch_size=None, shuffle=False, training=False
    ):
        """Images and what goes with them as one dataset that yields converted batches."""
        converter = self._converter(training)
        if self._are_arrays(data):
            return ConvertedArrays(converter, data, y, sample_weight, batch_size or 32, shuffle)
        # A tf.data.Dataset, told without importing TensorFlow
        is_tf_data = hasattr(data, "element_spec")
        if not (
            is_tf_data
            or is_loader(data)
            or isinstance(data, (keras.utils.PyDataset, types.GeneratorType))
        ):
            raise TypeError(
                "With a preprocessor attached, images come as an array, a tf.data.Dataset, a "
                "keras.utils.PyDataset, a DataLoader of PyTorch "
                "or a generator, and in `predict` as paths and images of Pillow, too. For anything "
                "else, call `preprocessor(images)` in your "
                "own pipeline and use a classifier with `preprocessor=None`. Received: "
                f"{type(data).__name__}"
            )
        if y is not None or sample_weight is not None:
            raise ValueError(
                "A dataset brings its own targets and sample weights: yield (images, y) or "
                "(images, y, sample_weight), and leave "
                "`y` and `sample_weight` out."
            )
        if is_tf_data:
            return data.map(
                lambda *batch: convert_batch(converter, batch), num_parallel_calls=-1
            ).prefetch(-1)
        if isinstance(data, keras.utils.PyDataset):
            return ConvertedDataset(data, converter)
        if is_loader(data) and has_length(data):
            return ConvertedLoader(data, converter)
        return (convert_loaded(converter, batch) for batch in data)


def _images_and_labels(batch):
    return (*batch, None)[:2] if isinstance(batch, (tuple, list)) else (batch, None)


def _split(validation_split, *arrays):
    """The first samples of each array, and the last `validation_split` of them, as Keras splits."""
    num_training = int(len(keras.tree.flatten(arrays)[0]) * (1 - validation_split))
    return map_arrays(lambda array: array[:num_training], arrays), map_arrays(
        lambda array: array[num_training:], arrays
    )
