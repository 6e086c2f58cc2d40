"""Raw images into `fit`, `evaluate` and `predict`: the preprocessor runs on each batch before the model sees it."""

import keras
import numpy as np


class RawImageInputs:
    """Mixed into a model with a `preprocessor`: its training and prediction methods take raw images.

    Arrays, `tf.data` and `keras.utils.PyDataset` are taken. With `preprocessor=None` the methods are those of `keras.Model`.
    """

    _takes_named_images = False  # whether `x` may be a dictionary of arrays

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
        # With this keyword, `fit` hands on its validation data, which are converted already.
        if self.preprocessor is not None and "_use_cached_eval_dataset" not in kwargs:
            x = self._convert(x, y, sample_weight, batch_size)
            y = sample_weight = batch_size = None
        return super().evaluate(x, y, batch_size=batch_size, verbose=verbose, sample_weight=sample_weight, **kwargs)

    def predict(self, x, batch_size=None, **kwargs):
        if self.preprocessor is not None:
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

    def _convert_images(self, images, training=False):
        return images if self.preprocessor is None else self._converter(training)(images)

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


def _convert_batch(preprocessor, batch):
    images, *rest = batch
    images = preprocessor(images)
    return (images, *rest) if rest else images


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
        return _convert_batch(self._preprocessor, batch if isinstance(batch, tuple) else (batch,))

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
