"""Datasets that convert raw images batch by batch, because all images at once may not fit into
memory.
"""

import operator

import keras
import numpy as np

from keras_deit.data_formats import join_image_shape
from keras_deit.images import is_picture, read_picture


def convert_batch(converter, batch):
    """Converts the images of (images,), (images, y) or (images, y, sample_weight)."""
    images, *rest = batch if isinstance(batch, (tuple, list)) else (batch,)
    return (converter(images), *rest)


class ConvertedDataset(keras.utils.PyDataset):
    """Converts the batches of a `PyDataset`."""

    def __init__(self, dataset, converter):
        super().__init__(dataset.workers, dataset.use_multiprocessing, dataset.max_queue_size)
        self._dataset = dataset
        self._converter = converter

    @property
    def num_batches(self):
        return self._dataset.num_batches

    def __getitem__(self, index):
        return convert_batch(self._converter, self._dataset[index])

    def on_epoch_begin(self):
        self._dataset.on_epoch_begin()

    def on_epoch_end(self):
        self._dataset.on_epoch_end()


class ConvertedArrays(keras.utils.PyDataset):
    """Converts batches of arrays, shuffled in each epoch if `shuffle` is `True`."""

    def __init__(self, converter, images, y, sample_weight, batch_size, shuffle):
        super().__init__()
        # Keras would read a list of labels as labels of several outputs.
        y = np.asarray(y) if isinstance(y, list) else y
        self._arrays = map_arrays(to_numpy, (images, y, sample_weight))
        lengths = {len(array) for array in keras.tree.flatten(self._arrays) if array is not None}
        if len(lengths) > 1:
            raise ValueError(
                "Images, targets and sample weights must have the same length. "
                f"Received: {', '.join(str(map_arrays(np.shape, part)) for part in self._arrays)}"
            )
        self._converter = converter
        self._batch_size = batch_size
        self._shuffle = shuffle
        self._order = np.arange(*lengths)

    @property
    def num_batches(self):
        return -(-len(self._order) // self._batch_size)

    def __getitem__(self, index):
        rows = self._order[index * self._batch_size : (index + 1) * self._batch_size]
        images, y, sample_weight = map_arrays(lambda array: array[rows], self._arrays)
        images = map_arrays(to_numpy, self._converter(images))
        return tuple(part for part in (images, y, sample_weight) if part is not None)

    def on_epoch_begin(self):
        if self._shuffle:
            self._order = np.random.permutation(self._order)


class ConvertedPictures(keras.utils.PyDataset):
    """Converts files, Pillow images and arrays of different sizes.

    A picture that cannot be read sets `error`, for the caller to raise after `predict`, and calls
    `stop`. An error inside `predict` would lose the weights on JAX.
    """

    error = None

    def __init__(self, converter, pictures, backbone, batch_size, stop):
        super().__init__()
        self._converter = converter
        self._pictures = pictures
        self._backbone = backbone
        self._batch_size = batch_size
        self._stop = stop

    @property
    def num_batches(self):
        return -(-len(self._pictures) // self._batch_size)

    def __getitem__(self, index):
        pictures = self._pictures[index * self._batch_size : (index + 1) * self._batch_size]
        if self.error is None:
            try:
                images = [self._converter(self._read(picture)[None]) for picture in pictures]
                return (np.concatenate([to_numpy(image) for image in images]),)
            except Exception as error:
                self.error = error
                self._stop()
        backbone = self._backbone
        size = backbone.patch_size if None in backbone.image_size else backbone.image_size
        shape = join_image_shape(size, backbone.num_channels, backbone.data_format)
        return (np.zeros((len(pictures), *shape), "float32"),)

    def _read(self, picture):
        if not is_picture(picture):
            return to_numpy(picture)
        image = read_picture(picture, self._backbone.num_channels)
        return image.transpose(2, 0, 1) if self._backbone.data_format == "channels_first" else image


class ConvertedLoader(keras.utils.PyDataset):
    """Converts the batches of a PyTorch `DataLoader` with a known length."""

    def __init__(self, loader, converter):
        super().__init__()
        self._loader = loader
        self._converter = converter
        self._batches = None

    @property
    def num_batches(self):
        return len(self._loader)

    def __getitem__(self, index):
        if index == 0:  # a new epoch, or Keras inspecting the first batch
            self._batches = iter(self._loader)
        return convert_loaded(self._converter, next(self._batches))


def convert_loaded(converter, batch):
    """Like `convert_batch` for PyTorch tensors, on any backend; returns NumPy arrays."""
    return map_arrays(to_numpy, convert_batch(converter, map_arrays(from_torch, batch)))


def is_loader(data):
    """Whether `data` is a PyTorch `DataLoader`, without importing PyTorch."""
    parents = type(data).__mro__
    return any(
        parent.__name__ == "DataLoader" and parent.__module__.startswith("torch.utils.data")
        for parent in parents
    )


def is_grain(data):
    """Whether `data` is a grain `MapDataset` or `IterDataset`, without importing grain."""
    return any(
        parent.__name__ in ("MapDataset", "IterDataset") and parent.__module__.startswith("grain.")
        for parent in type(data).__mro__
    )


def has_length(loader):
    """Whether the length is known; a `DataLoader` of an `IterableDataset` may not know it."""
    return operator.length_hint(loader, -1) >= 0


def from_torch(tensor):
    """A PyTorch tensor on any device as a NumPy array; anything else unchanged."""
    return np.asarray(tensor.detach().cpu()) if hasattr(tensor, "detach") else tensor


def map_arrays(function, arrays):
    """Applies `function` to each array in a structure that may contain `None`."""
    return keras.tree.map_structure(
        lambda array: None if array is None else function(array), arrays
    )


def to_numpy(array):
    return keras.ops.convert_to_numpy(array) if keras.ops.is_tensor(array) else np.asarray(array)
