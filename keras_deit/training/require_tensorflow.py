"""Imports TensorFlow, or explains what needs it."""

try:
    import tensorflow as tf
except ModuleNotFoundError as error:
    if error.name != "tensorflow":
        raise
    raise ModuleNotFoundError(
        "The image pipelines of `keras_deit.training` use tf.data on every Keras backend: `pip "
        "install tensorflow`. Without TensorFlow, pass `fit` arrays, a `keras.utils.PyDataset`, a "
        "PyTorch `DataLoader` or a grain dataset.",
        name="tensorflow",
    ) from error

__all__ = ["tf"]
