"""TensorFlow, or a sentence that says what it is needed for."""

try:
    import tensorflow as tf
except ModuleNotFoundError as error:
    if error.name != "tensorflow":
        raise
    raise ModuleNotFoundError(
        "Images are read and augmented in tf.data, whichever backend Keras has: `pip install "
        "tensorflow`. On JAX and PyTorch `fit` also "
        "takes arrays, a keras.utils.PyDataset and what else Keras takes, without TensorFlow.",
        name="tensorflow",
    ) from error

__all__ = ["tf"]
