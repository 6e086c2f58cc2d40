"""Files and Pillow images in `predict`."""

import numpy as np
import pytest
from PIL import Image

from keras_deit.layers import DeiTImageConverter
from tests.conftest import BACKEND
from tests.helpers import numpy, raises, raw_images
from tests.models.tiny import tiny_classifier

pytestmark = pytest.mark.backend


def test_files_images_of_pillow_and_arrays_of_different_sizes(rng, tmp_path):
    classifier = tiny_classifier()
    first, second, third = (
        raw_images(rng, 1, shape)[0] for shape in ((20, 30, 3), (15, 40, 3), (33, 21, 3))
    )
    expected = [numpy(classifier(classifier.preprocessor(x[None]))) for x in (first, second, third)]
    file = tmp_path / "a.png"
    Image.fromarray(first).save(file)
    for one in (file, str(file), Image.fromarray(first), [file], (first,)):
        np.testing.assert_allclose(classifier.predict(one, verbose=0), expected[0], atol=1e-5)
    mixed = [file, Image.fromarray(second), third]
    np.testing.assert_allclose(
        classifier.predict(mixed, batch_size=2, verbose=0), np.concatenate(expected), atol=1e-5
    )


def test_files_are_gray_for_a_gray_model_and_channels_first_for_such_a_model(rng, tmp_path):
    file, image = tmp_path / "a.png", Image.fromarray(raw_images(rng, 1)[0])
    image.save(file)
    gray = tiny_classifier(
        {"image_shape": (12, 32, 1)}, preprocessor=DeiTImageConverter((12, 32), mean=0.5, std=0.5)
    )
    expected = gray.predict(np.asarray(image.convert("L"))[None, ..., None], verbose=0)
    np.testing.assert_allclose(gray.predict(file, verbose=0), expected, atol=1e-5)
    if BACKEND == "tensorflow":
        return  # has no convolution of channels_first on a processor
    converter = DeiTImageConverter((12, 32), data_format="channels_first")
    first = tiny_classifier(
        {"image_shape": (3, 12, 32), "data_format": "channels_first"}, preprocessor=converter
    )
    expected = first.predict(np.asarray(image).transpose(2, 0, 1)[None], verbose=0)
    np.testing.assert_allclose(
        first.predict([file, image], verbose=0), expected.repeat(2, 0), atol=1e-5
    )


def test_pictures_that_cannot_be_read(rng, tmp_path, shared_classifier):
    classifier = shared_classifier
    good = tmp_path / "a.png"
    Image.fromarray(raw_images(rng, 1)[0]).save(good)
    with raises(f"There is no file {tmp_path}/no.jpg. Give the name of an image."):
        classifier.predict([good, tmp_path / "no.jpg"])
    with raises(
        f"{tmp_path} is a directory. Give the images in it, such as "
        f"`sorted(pathlib.Path('{tmp_path}').iterdir())`."
    ):
        classifier.predict(tmp_path)
    with raises("`predict` needs at least one image. Received: an empty list"):
        classifier.predict([])
    with raises(
        "A list must contain paths, Pillow images or arrays (height, width, 3). Received: a list "
        "with a int",
        kind=TypeError,
    ):
        classifier.predict([good, 3])
    for shape in ((20, 30), (4, 20, 30, 3), (20, 30, 1)):
        with raises(
            "Arrays in a list must be single images (height, width, 3). Pass a batch as one "
            f"array. Received: an array of shape {shape}"
        ):
            classifier.predict([good, np.zeros(shape, "uint8")])
    with pytest.warns(UserWarning, match="Raw images must have pixel values from 0 to 255"):
        classifier.predict([np.full((20, 30, 3), 0.5, "float32")], verbose=0)
    with pytest.raises(
        ValueError,
        match="Files and Pillow images need a preprocessor. Use `preprocessor=",
    ):
        tiny_classifier(preprocessor=None).predict([str(good)])
    with raises(
        "Files and Pillow images are read as gray or RGB, but the model takes 2 channels. Use "
        "arrays (height, width, 2)."
    ):
        tiny_classifier(
            {"image_shape": (12, 32, 2)},
            preprocessor=DeiTImageConverter((12, 32), mean=0.5, std=0.5),
        ).predict(good)
