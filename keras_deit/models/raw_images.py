"""Raw images into `fit`, `evaluate` and `predict`: the preprocessor runs on each batch before the model sees it."""

import warnings

import keras
import numpy as np

from keras_deit.layers.deit_image_converter import DeiTImageConverter
from keras_deit.models.label_checks import check_labels

_FIRST = 32  # images of an array, looked at before any is converted


class RawImageInputs:
    """Mixed into a model with a `preprocessor`: its training and prediction methods take raw images.

    Arrays, `tf.data` and `keras.utils.PyDataset` are taken. With `preprocessor=None` the methods are those of `keras.Model`.
    """

    _takes_named_images = False  # whether `x` may be a dictionary of arrays

    def _get_classifier(self):
        """Whose images and classes these are. No property: Keras would save the model inside itself."""
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
        self._check_data(x, y)
        if isinstance(validation_data, (tuple, list)):
            self._check_data(*validation_data[:2])
        elif validation_data is not None:
            self._check_data(validation_data)
        if self.preprocessor is not None:
            if validation_split and validation_data is None:
                if not self._are_arrays(x):
                    raise ValueError(
                        "`validation_split` is for arrays. Split the dataset before, and give `validation_data`. "
                        f"Received: x={type(x).__name__}"
                    )
                (x, y, sample_weight), validation_data = _split(validation_split, x, y, sample_weight)
                validation_split = 0.0
            if validation_data is not None:
                validation_batch_size = kwargs.get("validation_batch_size") or batch_size
                if isinstance(validation_data, (tuple, list)):
                    validation_data = self._convert(*validation_data, batch_size=validation_batch_size)
                else:
                    validation_data = self._convert(validation_data)
            x = self._convert(x, y, sample_weight, batch_size, shuffle, training=True)
            y = sample_weight = batch_size = None
            # Arrays are shuffled in the conversion, and tf.data shuffles itself.
            shuffle = shuffle and isinstance(x, _ConvertedDataset)
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

    def evaluate(self, x=None, y=None, batch_size=None, verbose="auto", sample_weight=None, **kwargs):
        # With this keyword, `fit` hands on its validation data, which are checked and converted already.
        if "_use_cached_eval_dataset" not in kwargs:
            self._check_data(x, y)
            if self.preprocessor is not None:
                x = self._convert(x, y, sample_weight, batch_size)
                y = sample_weight = batch_size = None
        return super().evaluate(x, y, batch_size=batch_size, verbose=verbose, sample_weight=sample_weight, **kwargs)

    def predict(self, x, batch_size=None, **kwargs):
        if self.preprocessor is not None:
            self._check_data(x, labels_matter=False)
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

    def _check_data(self, data, y=None, labels_matter=True):
        """Refuses images and labels that do not fit before anything is compiled: an error in a step costs JAX the weights."""
        if hasattr(data, "element_spec"):
            images, y = _images_and_labels(data.element_spec)
        elif isinstance(data, keras.utils.PyDataset):
            images, y = _images_and_labels(data[0])
        elif self._are_arrays(data):
            images = data
        else:
            return
        if self.preprocessor is not None:
            images = self._images_of(images)
            self._check_images(images)
            if not hasattr(data, "element_spec"):
                self._warn_of_fractions(images)
        loss = getattr(self, "loss", None)
        if labels_matter and loss is not None:
            is_array = isinstance(y, list) or hasattr(y, "__array__")
            check_labels(loss, self._get_classifier().num_classes, _to_numpy(y) if is_array else y)

    def _check_images(self, images):
        """Of the preprocessor of this package; another may take other images."""
        shape = getattr(images, "shape", None)
        if not isinstance(self.preprocessor, DeiTImageConverter) or shape is None or getattr(shape, "rank", 4) is None:
            return  # a tf.data.Dataset may not know even the rank
        backbone = self._get_classifier().backbone
        axis, axes = (1, "{}, height, width") if backbone.data_format == "channels_first" else (3, "height, width, {}")
        channels = backbone.image_shape[axis - 1]
        if len(shape) != 4:
            advice = "For one image give `images[None]`, for a dataset `dataset.batch(32)`, and keep the axis of the channels, also of one."
        elif shape[axis] not in (channels, None):
            advice = "Convert the images, or load the model for theirs, with another `image_shape`."
        elif shape[0] == 0:
            advice = "Give one at least."
        else:
            return
        expected = f"(batch, {axes.format(channels)})"
        raise ValueError(f"Images must come in batches of shape {expected}. {advice} Received: images of shape {tuple(shape)}")

    def _warn_of_fractions(self, images):
        """Of levels up to 1, nothing is left but black."""
        if not isinstance(self.preprocessor, DeiTImageConverter) or "float" not in str(images.dtype):
            return
        first = _to_numpy(images[:_FIRST])
        if 0 < first.max() <= 1:
            warnings.warn(
                "Raw images have levels from 0 to 255, and these have none above 1, as if they were scaled already. Give them as they "
                "were: `255 * images` if they are from 0 to 1, `127.5 * (images + 1)` if they are from -1 to 1. "
                f"Received: levels from {first.min():.3g} to {first.max():.3g}",
                stacklevel=4,
            )

    def _convert_images(self, images, training=False):
        if self.preprocessor is None:
            return images
        self._check_images(self._images_of(images))
        return self._converter(training)(images)

    def _convert(self, data, y=None, sample_weight=None, batch_size=None, shuffle=False, training=False):
        """Images and what goes with them as one dataset that yields converted batches."""
        converter = self._converter(training)
        if (hasattr(data, "element_spec") or isinstance(data, keras.utils.PyDataset)) and (
            y is not None or sample_weight is not None
        ):
            raise ValueError(
                "A dataset brings its own targets and sample weights: yield (images, y) or (images, y, sample_weight), and leave "
                "`y` and `sample_weight` out."
            )
        if hasattr(data, "element_spec"):  # a tf.data.Dataset, told without importing TensorFlow
            return data.map(lambda *batch: _convert_batch(converter, batch), num_parallel_calls=-1).prefetch(-1)
        if isinstance(data, keras.utils.PyDataset):
            return _ConvertedDataset(data, converter)
        if self._are_arrays(data):
            return _ConvertedArrays(converter, data, y, sample_weight, batch_size or 32, shuffle)
        raise TypeError(
            "With a preprocessor attached, images come as an array, a tf.data.Dataset or a keras.utils.PyDataset. For anything "
            "else, call `preprocessor(images)` in your own pipeline and use a classifier with `preprocessor=None`. "
            f"Received: {type(data).__name__}"
        )


def _images_and_labels(batch):
    return (*batch, None)[:2] if isinstance(batch, (tuple, list)) else (batch, None)


def _convert_batch(preprocessor, batch):
    images, *rest = batch
    return (preprocessor(images), *rest)


def _split(validation_split, *arrays):
    """The first samples of each array, and the last `validation_split` of them, as Keras splits."""
    num_training = int(len(keras.tree.flatten(arrays)[0]) * (1 - validation_split))
    return _map(lambda array: array[:num_training], arrays), _map(lambda array: array[num_training:], arrays)


def _map(function, arrays):
    """`function` of each array in a structure that may hold `None`."""
    return keras.tree.map_structure(lambda array: None if array is None else function(array), arrays)


class _ConvertedDataset(keras.utils.PyDataset):
    def __init__(self, dataset, preprocessor):
        super().__init__(dataset.workers, dataset.use_multiprocessing, dataset.max_queue_size)
        self._dataset = dataset
        self._preprocessor = preprocessor

    @property
    def num_batches(self):
        return self._dataset.num_batches

    def __getitem__(self, index):
        batch = self._dataset[index]
        return _convert_batch(self._preprocessor, batch if isinstance(batch, (tuple, list)) else (batch,))

    def on_epoch_begin(self):
        self._dataset.on_epoch_begin()

    def on_epoch_end(self):
        self._dataset.on_epoch_end()


class _ConvertedArrays(keras.utils.PyDataset):
    """Batches of arrays, converted as they are read: all at once, thousands of photographs would not fit in memory."""

    def __init__(self, preprocessor, images, y, sample_weight, batch_size, shuffle):
        super().__init__()
        # Keras reads a list as several outputs; a list of labels is one array.
        y = np.asarray(y) if isinstance(y, list) else y
        self._arrays = _map(_to_numpy, (images, y, sample_weight))
        lengths = {len(array) for array in keras.tree.flatten(self._arrays) if array is not None}
        if len(lengths) > 1:
            raise ValueError(
                "Images, targets and sample weights must be as many. "
                f"Received: {', '.join(str(_map(np.shape, part)) for part in self._arrays)}"
            )
        self._preprocessor = preprocessor
        self._batch_size = batch_size
        self._shuffle = shuffle
        self._order = np.arange(*lengths)

    @property
    def num_batches(self):
        return -(-len(self._order) // self._batch_size)

    def __getitem__(self, index):
        rows = self._order[index * self._batch_size : (index + 1) * self._batch_size]
        images, y, sample_weight = _map(lambda array: array[rows], self._arrays)
        images = _map(_to_numpy, self._preprocessor(images))
        return tuple(part for part in (images, y, sample_weight) if part is not None)

    def on_epoch_begin(self):
        if self._shuffle:
            self._order = np.random.permutation(self._order)


def _to_numpy(array):
    return keras.ops.convert_to_numpy(array) if keras.ops.is_tensor(array) else np.asarray(array)
