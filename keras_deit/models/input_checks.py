"""Checks images before the first step: an error inside a step loses the weights on JAX."""

import numpy as np


class CheckedInputs:
    """Mixin for models with `_get_backbone`: methods check arrays, tensors and `tf.data`.

    The words are the same on each backend. Keras itself would speak of an unbound variable for an
    empty batch, and of an index for a single number.
    """

    def _check_inputs(self, x):
        backbone = self._get_backbone()
        expected = backbone.image_shape
        images = _images_of(x)
        if not hasattr(images, "shape"):
            return
        check_numbers(images)
        shape = images.shape
        if getattr(shape, "rank", 0) is None:
            return  # a tf.data.Dataset may not even know the rank
        shape = tuple(shape)
        if not any(_agree(shape[1:], form) for form in _forms(expected)) or not shape:
            advice = "Convert the images, or load the model with another `image_shape`."
        elif shape[0] == 0:
            advice = "At least one image is needed."
        else:
            if None in expected and len(shape) == 4:
                backbone.patch_embedding.compute_output_shape(shape)  # checks height and width
            return
        words = ", ".join(map(str, expected)).replace("None, None", "height, width")
        raise ValueError(
            f"Images must have shape (batch, {words}). {advice} Received: images of shape {shape}"
        )

    def fit(self, x=None, *args, **kwargs):
        self._check_inputs(x)
        validation_data = kwargs.get("validation_data")
        if isinstance(validation_data, (tuple, list)) and validation_data:
            self._check_inputs(validation_data[0])
        return super().fit(x, *args, **kwargs)

    def evaluate(self, x=None, *args, **kwargs):
        self._check_inputs(x)
        return super().evaluate(x, *args, **kwargs)

    def predict(self, x, *args, **kwargs):
        self._check_inputs(x)
        return super().predict(x, *args, **kwargs)

    def train_on_batch(self, x, *args, **kwargs):
        self._check_inputs(x)
        return super().train_on_batch(x, *args, **kwargs)

    def test_on_batch(self, x, *args, **kwargs):
        self._check_inputs(x)
        return super().test_on_batch(x, *args, **kwargs)

    def predict_on_batch(self, x):
        self._check_inputs(x)
        return super().predict_on_batch(x)


def _images_of(x):
    """The images, or their spec, in what a model takes."""
    if hasattr(x, "element_spec"):  # a tf.data.Dataset, recognised without importing TensorFlow
        x = x.element_spec
        x = x[0] if isinstance(x, tuple) else x
    if isinstance(x, dict):
        if "images" not in x:
            raise ValueError(
                'Inputs must be images, or a dict with "images". Received: a dict with the keys '
                f"{list(x)}"
            )
        return x["images"]
    if x is None or isinstance(x, (list, tuple)):
        if x is None or len(x) != 1:
            received = "None" if x is None else f"a {type(x).__name__} of length {len(x)}"
            raise ValueError(f"Images must be one array or dataset. Received: {received}")
        return x[0]
    return x


def check_numbers(images):
    if isinstance(images, np.ndarray) and images.dtype.kind in "cmMOSU":
        raise ValueError(f"Images must be real numbers. Received: images of dtype {images.dtype}")


def _forms(image_shape):
    """The shapes that Keras takes for an image: it adds or removes a last axis of size 1."""
    forms = [image_shape, (*image_shape, 1)]
    return forms + ([image_shape[:-1]] if image_shape[-1] == 1 else [])


def _agree(shape, expected):
    return len(shape) == len(expected) and all(
        not isinstance(own, int) or other in (own, None) for own, other in zip(shape, expected)
    )
