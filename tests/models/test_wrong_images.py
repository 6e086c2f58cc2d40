"""Images that a classifier refuses or warns about."""

import keras
import numpy as np
import pytest

from keras_deit.layers import DeiTImageConverter
from tests.helpers import numpy, raises, raw_images
from tests.models.tiny import LOSS, OneBatch, tiny_classifier

pytestmark = pytest.mark.backend


def test_a_source_that_cannot_be_converted(rng):
    classifier = tiny_classifier()
    classifier.compile()
    expected = "Raw images must be an array, a tf.data.Dataset, a keras.utils.PyDataset, a PyTorch DataLoader, a grain dataset or a generator; `predict` also takes paths and Pillow images. For anything else, call `preprocessor(images)` in your own pipeline and use `preprocessor=None`. Received: "
    with raises(expected + "list", kind=TypeError):
        classifier.fit(["cat.jpg", "dog.jpg"], np.array([0, 1]))
    with raises(expected + "map", kind=TypeError):
        classifier.predict(map(np.asarray, raw_images(rng)))


def test_data_that_does_not_fit_together(rng):
    import tensorflow as tf

    classifier = tiny_classifier()
    classifier.compile("adam", **LOSS)
    x = raw_images(rng, 6)
    with raises(
        "Images, targets and sample weights must have the same length. Received: (6, 20, 30, 3), "
        "(8,), None"
    ):
        classifier.fit(x, np.zeros(8), verbose=0)
    with raises(
        "Images, targets and sample weights must have the same length. Received: (6, 20, 30, 3), "
        "(6,), (7,)"
    ):
        classifier.evaluate(x, np.zeros(6), sample_weight=np.ones(7), verbose=0)
    dataset = tf.data.Dataset.from_tensor_slices((x, np.zeros(6))).batch(2)
    with raises(
        "`y` and `sample_weight` cannot be combined with a dataset: it must yield (images, y) or "
        "(images, y, sample_weight)."
    ):
        classifier.fit(dataset, np.zeros(6), verbose=0)
    with raises(
        "`validation_split` needs arrays. Split the dataset yourself and use `validation_data`. "
        f"Received: x={type(dataset).__name__}"
    ):
        classifier.fit(dataset, validation_split=0.5, verbose=0)
    assert classifier._convert(x, [0, 1, 2, 3, 4, 0], None, 4)[0][1].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("shape", "advice"),
    [
        ((20, 30, 3), None),
        ((6, 20, 30), None),
        ((), None),
        (
            (2, 20, 30, 1),
            "Convert the images, or load the model with another `image_shape`.",
        ),
        ((0, 20, 30, 3), "At least one image is needed."),
    ],
)
def test_images_of_another_shape(shape, advice, shared_classifier, rng):
    import tensorflow as tf

    classifier, good, y = shared_classifier, raw_images(rng), np.zeros(4, int)
    classifier.compile("sgd", **LOSS)
    expected = numpy(classifier(classifier.preprocessor(good)))
    bad = np.zeros(shape, "uint8")
    advice = advice or (
        "For one image, use `images[None]`; for a dataset, `dataset.batch(32)`. The channel axis "
        "is needed even for one channel."
    )
    message = (
        f"Images must have shape (batch, height, width, 3). {advice} Received: images of shape "
    )
    ways = [
        classifier.predict,
        classifier.predict_on_batch,
        lambda x: classifier.fit(x, y),
        lambda x: classifier.fit(good, y, validation_data=(x, y)),
        lambda x: classifier.evaluate(x, y),
    ]
    for way in ways:
        with raises(f"{message}{shape}"):
            way(bad)
    if len(shape) >= 3 and shape[0]:
        with raises(f"{message}{(None, *shape[1:])}"):
            classifier.fit(
                tf.data.Dataset.from_tensor_slices((bad, np.zeros(shape[0], int))).batch(2)
            )
        for source in (OneBatch(bad, y), (batch for batch in [(bad, y)])):
            with raises(f"{message}{shape}"):
                classifier.predict(source)
    if len(shape) == 3:
        with raises(f"{message}{shape}"):
            classifier.predict(tf.data.Dataset.from_tensors(bad))  # not batched
    np.testing.assert_allclose(classifier.predict(good, verbose=0), expected, atol=1e-5)


def test_images_of_another_shape_with_channels_first(rng):
    classifier = tiny_classifier(
        {"image_shape": (3, 12, 32), "data_format": "channels_first"},
        preprocessor=DeiTImageConverter((12, 32), data_format="channels_first"),
    )
    with raises(
        "Images must have shape (batch, 3, height, width). Convert the images, or load the model "
        "with another `image_shape`. Received: images of shape (4, 20, 30, 3)"
    ):
        classifier.predict(raw_images(rng))


@pytest.mark.parametrize("source", ["array", "tensor", "PyDataset"])
def test_images_that_were_scaled_already_get_a_warning(source, rng):
    classifier = tiny_classifier()
    scaled = rng.uniform(-1, 1, size=(4, 20, 30, 3)).astype("float32")
    scaled[0, 0, 0] = -1, 1, 1
    as_source = {"array": np.asarray, "tensor": keras.ops.convert_to_tensor, "PyDataset": OneBatch}[
        source
    ]
    with pytest.warns(UserWarning) as caught:
        classifier.predict(as_source(scaled), verbose=0)
    # Keras has some of NumPy
    ours = [warning for warning in caught if warning.category is UserWarning]
    assert [str(warning.message) for warning in ours] == [
        "Raw images must have pixel values from 0 to 255, but these do not exceed 1. Use `255 * "
        "images` for values from 0 to 1, `127.5 * (images + 1)` for -1 to 1. Received: pixel "
        "values from -1 to 1"
    ]
    assert ours[0].filename == __file__  # where `predict` was called
    # A warning is an error here: setup.cfg.
    for levels in (127.5 * (scaled + 1), np.zeros_like(scaled), (scaled > 0).astype("uint8")):
        classifier.predict(as_source(levels), verbose=0)
    tiny_classifier(preprocessor=keras.layers.Rescaling(2.0)).predict(
        as_source(scaled[:, :12].repeat(2, 2)[:, :, :32]), verbose=0
    )
