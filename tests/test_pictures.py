"""Image files of all kinds are the same pixels to every reader, or the same error."""

import numpy as np
import pytest

from keras_deit.visualization import read_photograph
from tests.helpers import numpy, raises, raw_images, tiny_classifier
from tests.pictures import write_broken, write_good

pytestmark = pytest.mark.backend


def test_every_reader_sees_the_same_pixels(tmp_path):
    pytest.importorskip("tensorflow")
    from keras_deit.training.image_folder import ImageFolder
    from keras_deit.training.image_reader import image_reader

    (tmp_path / "only").mkdir()
    good = write_good(tmp_path / "only")
    classifier = tiny_classifier({"num_layers": 1})
    images = ImageFolder.open(tmp_path)
    assert set(images.files) == set(map(str, good))
    reader = image_reader(images)
    in_training = images.dataset().map(lambda *element: reader(element)).as_numpy_iterator()
    for file, (found, _) in zip(images.files, in_training):
        expected, tolerance = next(good[path] for path in good if str(path) == file)
        np.testing.assert_allclose(found, expected, atol=tolerance, err_msg=file)
        np.testing.assert_array_equal(read_photograph(file), found)
        logits = numpy(classifier(classifier.preprocessor(found[None])))
        np.testing.assert_allclose(classifier.predict([file], verbose=0), logits, atol=1e-5)


def test_every_reader_names_a_file_that_it_cannot_read(tmp_path):
    classifier = tiny_classifier({"num_layers": 1})
    for path, error in write_broken(tmp_path).items():
        with raises(error):
            read_photograph(path)
        with raises(error):
            classifier.predict([path], verbose=0)


def test_a_broken_file_among_others_loses_no_weights(rng, tmp_path):
    """An error inside of Keras' `predict` would lose the weights on JAX."""
    classifier = tiny_classifier({"num_layers": 1})
    pixels = raw_images(rng)
    expected = classifier.predict(pixels, verbose=0)
    path, error = next(iter(write_broken(tmp_path).items()))
    with raises(error):
        classifier.predict([*pixels, path, *pixels], batch_size=2, verbose=0)
    np.testing.assert_array_equal(classifier.predict(pixels, verbose=0), expected)


def test_the_folder_of_a_training(tmp_path):
    pytest.importorskip("tensorflow")
    from keras_deit.training.image_folder import ImageFolder

    (tmp_path / "only").mkdir()
    write_good(tmp_path / "only")
    *broken, directory = write_broken(tmp_path / "only").items()
    images = ImageFolder.open(tmp_path)
    unreadable = images.find_unreadable()
    assert sorted(unreadable.values()) == sorted(error for _, error in broken)
    assert images.skipped == (str(directory[0]),)
    before = images.identity
    (tmp_path / "only" / "nowhere").write_bytes(b"no image")  # which a link points to
    assert images.identity != before


def test_a_directory_of_images_may_be_named_like_an_image(tmp_path):
    pytest.importorskip("tensorflow")
    from keras_deit.training.image_folder import ImageFolder

    (tmp_path / "only" / "clip.gif").mkdir(parents=True)
    write_good(tmp_path / "only" / "clip.gif")
    images = ImageFolder.open(tmp_path)
    assert (len(images), images.skipped) == (6, ())


def test_a_file_without_permission(tmp_path, monkeypatch):
    file = tmp_path / "a.png"
    file.touch()

    def refuse(path, *_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("PIL.Image.open", refuse)  # root may read every file
    with raises(
        f"{file} may not be read. Change its permissions. [Errno 13] Permission denied: '{file}'"
    ):
        read_photograph(file)
