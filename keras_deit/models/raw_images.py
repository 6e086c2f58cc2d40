"""`fit`, `evaluate` and `predict` with raw images, which are preprocessed batch by batch."""

import functools
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
    is_grain,
    is_loader,
    map_arrays,
    to_numpy,
)
from keras_deit.models.input_checks import check_numbers
from keras_deit.models.label_checks import check_labels

_FIRST = 32  # how many images of an array are checked for their range


class RawImageInputs:
    """Mixin for models with a `preprocessor`: training and prediction methods take raw images.

    Images may be arrays, `tf.data`, `keras.utils.PyDataset`, PyTorch's `DataLoader`, grain's
    datasets or generators. `predict` also takes a path, a Pillow image, or a list of paths, Pillow
    images and arrays of different sizes. With `preprocessor=None`, the methods take preprocessed
    images, as those of `keras.Model` do.
    """

    _takes_named_images = False  # whether `x` may be a dict of arrays
    _validation_inputs = None  # of the `fit` that is running

    def _get_classifier(self):
        """The classifier. Not a property: Keras would save the model inside itself."""
        return self

    def _get_backbone(self):
        return self._get_classifier().backbone

    def _images_of(self, inputs):
        return inputs

    def _converter(self, training):
        """The function from raw images to the inputs of the model."""
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
                        "`validation_split` needs arrays. Split the dataset yourself and use "
                        f"`validation_data`. Received: x={type(x).__name__}"
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
            # Keras may shuffle only the batches of a `PyDataset`: `ConvertedArrays` shuffles
            # itself.
            shuffle = shuffle and isinstance(x, ConvertedDataset)
        is_tuple = isinstance(validation_data, (tuple, list))
        self._validation_inputs = validation_data[0] if is_tuple else validation_data
        try:
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
        finally:
            self._validation_inputs = None

    def evaluate(
        self, x=None, y=None, batch_size=None, verbose="auto", sample_weight=None, **kwargs
    ):
        # `fit` calls this method with its validation data, which are already checked and converted.
        if x is None or x is not self._validation_inputs:
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
            x = ConvertedPictures(
                self._converter(training=False),
                pictures,
                self._get_classifier().backbone,
                batch_size or 32,
                stop=lambda: setattr(self, "stop_predicting", True),
            )
            batch_size = None
        elif self.preprocessor is not None:
            x = self._checked(x, labels_matter=False)
            x, batch_size = self._convert(x, batch_size=batch_size), None
        outputs = super().predict(x, batch_size=batch_size, **kwargs)
        if isinstance(x, ConvertedPictures) and x.error is not None:
            raise x.error
        return outputs

    def train_on_batch(self, x, *args, **kwargs):
        return super().train_on_batch(self._convert_images(x, training=True), *args, **kwargs)

    def test_on_batch(self, x, *args, **kwargs):
        return super().test_on_batch(self._convert_images(x), *args, **kwargs)

    def predict_on_batch(self, x):
        return super().predict_on_batch(self._convert_images(x))

    def _are_arrays(self, data):
        return hasattr(data, "shape") or (self._takes_named_images and isinstance(data, dict))

    def _checked(self, data, y=None, labels_matter=True):
        """Checks images and labels and returns the data.

        Errors must come before the first step, because an error inside a step loses the weights on
        JAX.
        """
        original = data
        if hasattr(data, "element_spec"):
            images, y = _images_and_labels(data.element_spec)
        elif isinstance(data, keras.utils.PyDataset):
            images, y = _images_and_labels(data[0])
        elif is_loader(data) or is_grain(data) or isinstance(data, types.GeneratorType):
            batches = iter(data)
            first = list(itertools.islice(batches, 1))
            if data is batches:
                # Puts the first batch back, as a generator.
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
            if isinstance(images, dict):
                raise ValueError(
                    "Batches must be (images, labels), not a dict. Map them first: "
                    '`dataset.map(lambda batch: (batch["image"], batch["label"]))`. Received: a '
                    f"dict with {', '.join(map(repr, images))}"
                )
            self._check_images(images)
            if not hasattr(data, "element_spec"):
                self._warn_of_fractions(images)
        loss = getattr(self, "loss", None)
        if labels_matter and loss is not None:
            is_array = isinstance(y, list) or hasattr(y, "__array__")
            check_labels(loss, self._get_classifier().num_classes, to_numpy(y) if is_array else y)
        return original

    def _check_pictures(self, pictures):
        """Checks all pictures before the first one is read."""
        if self.preprocessor is None:
            raise ValueError(
                "Files and Pillow images need a preprocessor. Use "
                "`preprocessor=DeiTImageConverter(...)`, or pass preprocessed arrays. "
                f"Received: {next(filter(is_picture, pictures))!r}"
            )
        if not pictures:
            raise ValueError("`predict` needs at least one image. Received: an empty list")
        axis, channels, axes = self._expected_axes()
        for picture in pictures:
            if is_picture(picture):
                if channels not in (1, 3):
                    raise ValueError(
                        "Files and Pillow images are read as gray or RGB, but the model takes "
                        f"{channels} channels. Use arrays ({axes})."
                    )
                if isinstance(picture, (str, os.PathLike)):
                    check_file(picture)
            elif not hasattr(picture, "shape"):
                raise TypeError(
                    f"A list must contain paths, Pillow images or arrays ({axes}). "
                    f"Received: a list with a {type(picture).__name__}"
                )
            elif isinstance(self.preprocessor, DeiTImageConverter) and (
                len(picture.shape) != 3 or picture.shape[axis - 1] != channels or 0 in picture.shape
            ):
                raise ValueError(
                    f"Arrays in a list must be single images ({axes}). Pass a batch as one array. "
                    f"Received: an array of shape {tuple(picture.shape)}"
                )
        arrays = [picture for picture in pictures if not is_picture(picture)]
        if arrays:
            self._warn_of_fractions(arrays[0][None])

    def _expected_axes(self):
        """The channel axis of a batch, the number of channels, and an image's axes in words."""
        backbone = self._get_classifier().backbone
        if backbone.data_format == "channels_first":
            return 1, backbone.num_channels, f"{backbone.num_channels}, height, width"
        return 3, backbone.num_channels, f"height, width, {backbone.num_channels}"

    def _check_images(self, images):
        """Checks the shape of images for `DeiTImageConverter`; others may take other images."""
        shape = getattr(images, "shape", None)
        if (
            not isinstance(self.preprocessor, DeiTImageConverter)
            or shape is None
            or getattr(shape, "rank", 4) is None
        ):
            return  # a tf.data.Dataset may not even know the rank
        check_numbers(images)
        axis, channels, axes = self._expected_axes()
        if len(shape) != 4:
            advice = (
                "For one image, use `images[None]`; for a dataset, `dataset.batch(32)`. The "
                "channel axis is needed even for one channel."
            )
        elif shape[axis] not in (channels, None):
            advice = "Convert the images, or load the model with another `image_shape`."
        elif shape[0] == 0:
            advice = "At least one image is needed."
        elif 0 in tuple(shape):
            advice = "At least one pixel is needed."
        else:
            return
        raise ValueError(
            f"Images must have shape (batch, {axes}). {advice} Received: images of shape "
            f"{tuple(shape)}"
        )

    def _warn_of_fractions(self, images):
        """Warns of pixel values up to 1, which would be almost black."""
        if not isinstance(self.preprocessor, DeiTImageConverter) or "float" not in str(
            images.dtype
        ):
            return
        first = to_numpy(images[:_FIRST])
        if 0 < first.max() <= 1:
            warnings.warn(
                "Raw images must have pixel values from 0 to 255, but these do not exceed 1. Use "
                "`255 * images` for values from 0 to 1, `127.5 * (images + 1)` for -1 to 1. "
                f"Received: pixel values from {first.min():.3g} to {first.max():.3g}",
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
        """Images, targets and sample weights as one dataset of preprocessed batches."""
        converter = self._converter(training)
        if self._are_arrays(data):
            return ConvertedArrays(converter, data, y, sample_weight, batch_size or 32, shuffle)
        # A tf.data.Dataset, recognised without importing TensorFlow
        is_tf_data = hasattr(data, "element_spec")
        if not (
            is_tf_data
            or is_loader(data)
            or is_grain(data)
            or isinstance(data, (keras.utils.PyDataset, types.GeneratorType))
        ):
            raise TypeError(
                "Raw images must be an array, a tf.data.Dataset, a keras.utils.PyDataset, a "
                "PyTorch DataLoader, a grain dataset or a generator; `predict` also takes paths "
                "and Pillow images. For anything else, call `preprocessor(images)` in your own "
                f"pipeline and use `preprocessor=None`. Received: {type(data).__name__}"
            )
        if y is not None or sample_weight is not None:
            raise ValueError(
                "`y` and `sample_weight` cannot be combined with a dataset: it must yield "
                "(images, y) or (images, y, sample_weight)."
            )
        if is_tf_data:
            return data.map(
                lambda *batch: convert_batch(converter, batch), num_parallel_calls=-1
            ).prefetch(-1)
        if isinstance(data, keras.utils.PyDataset):
            return ConvertedDataset(data, converter)
        if is_grain(data):
            return data.map(functools.partial(convert_loaded, converter))
        if is_loader(data) and has_length(data):
            return ConvertedLoader(data, converter)
        return (convert_loaded(converter, batch) for batch in data)


def _images_and_labels(batch):
    return (*batch, None)[:2] if isinstance(batch, (tuple, list)) else (batch, None)


def _split(validation_split, *arrays):
    """Splits arrays as Keras does: the last fraction is the validation data."""
    num_training = int(len(keras.tree.flatten(arrays)[0]) * (1 - validation_split))
    return map_arrays(lambda array: array[:num_training], arrays), map_arrays(
        lambda array: array[num_training:], arrays
    )
