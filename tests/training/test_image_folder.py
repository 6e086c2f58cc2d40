"""Folders of images, good and bad."""

import keras
import numpy as np
import pytest
from PIL import Image

tf = pytest.importorskip("tensorflow")

from keras_deit.training.image_folder import ImageFolder, reader  # noqa: E402
from tests.helpers import raises  # noqa: E402


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for label in ("dog", "cat"):
        (tmp_path / label).mkdir()
        for name in ("0.png", "1.jpg", "2.bmp"):
            keras.utils.save_img(
                tmp_path / label / name, rng.integers(0, 256, (20, 30, 3)), scale=False
            )
    return tmp_path


def break_two(folder):
    whole = (folder / "cat" / "1.jpg").read_bytes()
    (folder / "cat" / "1.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "dog" / "0.png").write_bytes(b"not an image")
    return str(folder / "cat" / "1.jpg"), str(folder / "dog" / "0.png")


def test_classes_are_folders_in_alphabetical_order(folder):
    opened = ImageFolder.open(folder).checked()
    assert opened.class_names == ("cat", "dog")
    assert opened.labels == (0, 0, 0, 1, 1, 1)
    assert opened.skipped == ()
    found = list(opened.dataset().map(lambda *element: reader()(element)).as_numpy_iterator())
    assert [int(label) for _, label in found] == [0, 0, 0, 1, 1, 1]
    for (image, _), file in zip(found, opened.files):
        np.testing.assert_array_equal(image, keras.utils.img_to_array(keras.utils.load_img(file)))


def test_colours_become_gray_as_in_pillow(folder):
    opened = ImageFolder.open(folder)
    for (gray, _), file in zip(
        opened.dataset().map(lambda *element: reader(1)(element)), opened.files
    ):
        np.testing.assert_array_equal(
            gray, keras.utils.img_to_array(keras.utils.load_img(file, color_mode="grayscale"))
        )
    with raises("`channels` must be one of 1, 3. Received: channels=4"):
        reader(4)


def test_broken_images_are_an_error_or_are_counted(folder):
    truncated, text = break_two(folder)
    opened = ImageFolder.open(folder)
    with raises(
        f"2 of 6 files cannot be read as images: {truncated}, {text}. Remove or replace them, or "
        "ask for them to be skipped."
    ):
        opened.checked()
    # Of two processes each reads its half, and both broken files are in that of the second.
    assert opened.checked(num_shards=2, shard=0) is opened
    with pytest.raises(ValueError, match="2 of 3 files cannot be read as images"):
        opened.checked(num_shards=2, shard=1)
    good = opened.checked(skip_broken=True)
    assert good.skipped == (truncated, text)
    assert good.labels == (0, 0, 1, 1)
    assert not set(good.files) & {truncated, text}


def test_files_of_another_format_are_counted(folder):
    (folder / "cat" / "3.tiff").write_bytes(b"II*")
    opened = ImageFolder.open(folder)
    assert opened.skipped == (str(folder / "cat" / "3.tiff"),)
    assert len(opened.files) == 6


@pytest.mark.parametrize("lossless", [False, True])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_webp_is_read_as_in_pillow(lossless, mode, folder):
    image = Image.open(folder / "cat" / "0.png").convert(mode)
    if mode == "RGBA":
        image.putalpha(128)
    for label in ("cat", "dog"):
        image.save(folder / label / "3.WEBP", lossless=lossless)
    opened = ImageFolder.open(folder).checked()
    assert len(opened.files) == 8
    assert opened.skipped == ()
    found = list(opened.dataset().map(lambda *element: reader()(element)).as_numpy_iterator())
    expected = np.asarray(Image.open(opened.files[3]).convert("RGB"))
    assert opened.files[3].endswith("3.WEBP")
    np.testing.assert_array_equal(found[3][0], expected)


def test_files_come_in_the_order_of_keras(folder):
    (folder / "cat" / "inner").mkdir()
    (folder / ".hidden").mkdir()
    keras.utils.save_img(folder / "cat" / "inner" / "0.png", np.zeros((4, 4, 3)))
    listed = keras.utils.image_dataset_from_directory(
        str(folder), batch_size=None, shuffle=False, verbose=False
    )
    opened = ImageFolder.open(folder)
    assert list(opened.files) == listed.file_paths
    assert list(opened.class_names) == listed.class_names


def test_a_folder_without_images_is_refused(tmp_path):
    with raises(
        f"There is no folder {tmp_path / 'none'}. Give one with a subfolder of images for each "
        "class."
    ):
        ImageFolder.open(tmp_path / "none")
    (tmp_path / "cat").mkdir()
    with raises(
        f"There are no images in subfolders of {tmp_path}, as .bmp, .gif, .jpeg, .jpg, .png or "
        ".webp. Give a folder with one for each class."
    ):
        ImageFolder.open(tmp_path)
    (tmp_path / "dog").mkdir()
    (tmp_path / "cat" / "1.png").write_bytes(b"no")
    with raises(
        "Every class must have images, as .bmp, .gif, .jpeg, .jpg, .png or .webp. Convert those of "
        "another format, or remove the folder. "
        "Received: none in dog"
    ):
        ImageFolder.open(tmp_path)
    (tmp_path / "dog").rmdir()
    with pytest.raises(ValueError, match="1 of 1 files cannot be read as images"):
        ImageFolder.open(tmp_path).checked(skip_broken=True)
