"""Images of every kind, decoded in a `tf.data` pipeline."""

import numpy as np
import pytest
from PIL import Image

tf = pytest.importorskip("tensorflow")

from keras_deit.training.image_folder import ImageFolder  # noqa: E402
from keras_deit.training.image_reader import image_reader  # noqa: E402
from keras_deit.visualization import read_photograph  # noqa: E402
from tests.helpers import raises  # noqa: E402


def read(path, channels=3, upright=True):
    """The image, and why it could not be read."""
    images = ImageFolder(path.parent, (str(path),), (0,), ("only",))
    unreadable = {}
    reader = image_reader(images, channels, upright, unreadable)
    ((image, label),) = images.dataset().map(lambda *element: reader(element)).as_numpy_iterator()
    assert label == 0
    return image, unreadable.get(0)


@pytest.fixture
def red(tmp_path):
    return Image.fromarray(np.zeros((6, 9, 3), "uint8") + np.array([200, 30, 10], "uint8"))


def test_jpeg_is_decoded_as_by_tensorflow(photographs, tmp_path):
    for number, photograph in enumerate(photographs):
        path = tmp_path / f"{number}.JPEG"
        Image.fromarray(photograph).save(path, quality=90)
        image, reason = read(path)
        assert reason is None
        # TensorFlow's default method is faster, and up to 16 levels off.
        expected = tf.io.decode_jpeg(path.read_bytes(), 3, dct_method="INTEGER_ACCURATE")
        np.testing.assert_array_equal(image, expected.numpy())


@pytest.mark.parametrize(
    ("name", "mode", "options"),
    [
        ("cmyk.JPEG", "CMYK", {"quality": 100}),
        ("rgb.JPEG", "RGB", {"quality": 100}),
        ("gray.png", "L", {}),
        ("alpha.png", "RGBA", {}),
        ("lossy.WEBP", "RGB", {"lossless": False}),
        ("alpha.WEBP", "RGBA", {"lossless": True}),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_color_modes(name, mode, options, channels, red, tmp_path):
    image = red.convert(mode)
    if mode == "RGBA":
        image.putalpha(128)
    image.save(tmp_path / name, **options)
    found, reason = read(tmp_path / name, channels)
    assert reason is None
    np.testing.assert_array_equal(found, read_photograph(tmp_path / name, channels))
    white = mode == "RGBA"  # half of it shows through
    shown = Image.blend(red, Image.new("RGB", red.size, "white"), 127 / 255) if white else red
    shown = np.array(shown.convert("L" if channels == 1 or mode == "L" else "RGB"))
    shown = shown.reshape(6, 9, -1)
    assert np.abs(found.astype(int) - shown).max() <= 3


def test_the_content_decides_the_format_and_not_the_name(red, tmp_path):
    red.save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "png.JPEG")  # ImageNet has one
    np.testing.assert_array_equal(read(tmp_path / "png.JPEG")[0], np.array(red))


def test_exif_rotation(red, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    red.save(tmp_path / "a.JPEG", exif=exif)
    assert read(tmp_path / "a.JPEG")[0].shape == (9, 6, 3)
    assert read(tmp_path / "a.JPEG", upright=False)[0].shape == (6, 9, 3)


def test_extreme_sizes(tmp_path):
    path = tmp_path / "a.png"
    for size in ((1, 1), (20_000, 200)):
        Image.new("L", size).save(path)
        assert read(path, channels=1)[0].shape == (*size[::-1], 1)
    Image.new("L", (20_000, 199)).save(path)
    image, reason = read(path)
    assert reason == (
        f"{path} is too narrow: its longer side may be at most 100 times the shorter. Crop it or "
        "remove it. Received: 20000 x 199 pixels"
    )
    np.testing.assert_array_equal(image, np.zeros((1, 1, 3), "uint8"))


def test_unreadable_files(red, tmp_path):
    red.save(tmp_path / "cut.jpg", quality=100)
    content = (tmp_path / "cut.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(content[: len(content) // 2])
    (tmp_path / "empty.png").touch()
    for name, reason in (
        ("cut.jpg", "is truncated or damaged. Copy it again. OSError: "),
        ("empty.png", "is not an image that Pillow can read. Convert it to JPEG or PNG."),
        ("none.png", "Give the name of an image."),
    ):
        image, found = read(tmp_path / name)
        assert str(tmp_path / name) in found
        assert reason in found
        np.testing.assert_array_equal(image, np.zeros((1, 1, 3), "uint8"))


def test_errors(tmp_path):
    (tmp_path / "a.png").touch()
    images = ImageFolder(tmp_path, (str(tmp_path / "a.png"),), (0,), ("only",))
    reader = image_reader(images)
    with pytest.raises(tf.errors.OpError, match="a.png is not an image that Pillow can read"):
        list(images.dataset().map(lambda *element: reader(element)))
    with raises("`channels` must be one of 1, 3. Received: channels=4"):
        image_reader(images, channels=4)
