"""Folders of images, good and bad."""

import keras
import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")

from keras_deit.training.image_folder import ImageFolder  # noqa: E402
from tests.helpers import raises  # noqa: E402

FORMATS = ".bmp, .gif, .jpeg, .jpg, .png, .webp"


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


def test_classes_are_subfolders_in_alphabetical_order(folder):
    images = ImageFolder.open(folder)
    assert images.class_names == ("cat", "dog")
    assert images.labels == (0, 0, 0, 1, 1, 1)
    assert images.skipped == ()
    assert images.file_names() == ("0.png", "1.jpg", "2.bmp") * 2
    expected = list(zip(range(6), images.files, images.labels))
    found = [
        (int(number), file.decode(), int(label))
        for number, file, label in images.dataset().as_numpy_iterator()
    ]
    assert found == expected


def test_identity_changes_with_the_files(folder, tmp_path):
    before = ImageFolder.open(folder).identity
    assert ImageFolder.open(f"{folder}/").identity == before
    (folder / "cat" / "0.png").write_bytes(b"another size")
    assert ImageFolder.open(folder).identity != before


def test_unreadable_images_are_found_and_left_out(folder):
    truncated, text = break_two(folder)
    images = ImageFolder.open(folder)
    unreadable = images.find_unreadable()
    assert list(unreadable) == [1, 3]
    assert unreadable[1].startswith(f"{truncated} is truncated or damaged. Copy it again. OSError")
    assert unreadable[3].startswith(f"{text} is not an image that Pillow can read.")
    # Two processes read half of the images each; both unreadable ones are in the second half.
    assert images.find_unreadable(num_shards=2, shard=0) == {}
    assert images.find_unreadable(num_shards=2, shard=1) == unreadable
    good = images.without(unreadable)
    assert good.skipped == (truncated, text)
    assert good.labels == (0, 0, 1, 1)
    assert not set(good.files) & {truncated, text}
    with raises(
        f"Every subfolder of {folder} must contain readable images, with names ending in "
        f"{FORMATS}. Convert the images or remove the subfolder. Received: no images in cat"
    ):
        images.without({0, 1, 2})


def test_files_of_another_format_are_skipped(folder):
    (folder / "cat" / "3.tiff").write_bytes(b"II*")
    images = ImageFolder.open(folder)
    assert images.skipped == (str(folder / "cat" / "3.tiff"),)
    assert len(images) == 6


def test_files_are_in_the_order_of_keras(folder):
    (folder / "cat" / "inner").mkdir()
    (folder / ".hidden").mkdir()
    keras.utils.save_img(folder / "cat" / "inner" / "0.png", np.zeros((4, 4, 3)))
    listed = keras.utils.image_dataset_from_directory(
        str(folder), batch_size=None, shuffle=False, verbose=False
    )
    images = ImageFolder.open(folder)
    assert list(images.files) == listed.file_paths
    assert list(images.class_names) == listed.class_names


def test_errors(tmp_path):
    with raises(
        f"The folder {tmp_path / 'none'} does not exist. Expected a folder with one subfolder of "
        "images per class."
    ):
        ImageFolder.open(tmp_path / "none")
    expected = (
        f"Expected one subfolder of images per class in {tmp_path}, with files ending in "
        f"{FORMATS}. Received: "
    )
    with raises(f"{expected}0 subfolders without such files"):
        ImageFolder.open(tmp_path)
    (tmp_path / "cat").mkdir()
    with raises(f"{expected}1 subfolders without such files"):
        ImageFolder.open(tmp_path)
    (tmp_path / "dog").mkdir()
    (tmp_path / "cat" / "1.png").write_bytes(b"no")
    with raises(
        f"Every subfolder of {tmp_path} must contain readable images, with names ending in "
        f"{FORMATS}. Convert the images or remove the subfolder. Received: no images in dog"
    ):
        ImageFolder.open(tmp_path)
