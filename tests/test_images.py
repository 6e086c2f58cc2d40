"""Photographs as people have them: rotated, transparent, gray, broken."""

import io
import sys

import numpy as np
import pytest
from PIL import Image

from keras_deit.visualization import read_photograph
from tests.helpers import raises


@pytest.fixture
def photograph(photographs):
    return Image.fromarray(photographs[0][:60, :90])


def test_png_is_read_exactly(photograph, tmp_path):
    photograph.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_photograph(tmp_path / "a.png"), np.asarray(photograph))
    gray = read_photograph(str(tmp_path / "a.png"), channels=1)
    np.testing.assert_array_equal(gray[..., 0], np.asarray(photograph.convert("L")))
    assert gray.shape == (60, 90, 1)


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA", "CMYK", "YCbCr"])
def test_color_modes(mode, photograph, tmp_path):
    file = tmp_path / ("a.tiff" if mode in ("CMYK", "YCbCr") else "a.png")
    options = {"compression": "tiff_lzw"} if file.suffix == ".tiff" else {}
    photograph.convert(mode).save(file, **options)
    expected = photograph.convert(mode).convert("RGB")
    difference = np.abs(read_photograph(file).astype(int) - np.asarray(expected))
    assert difference.max() <= 2, mode


def test_transparent_pixels_become_white(photograph, tmp_path):
    photograph.putalpha(
        Image.fromarray(np.repeat([[0], [255]], 30, axis=0).astype("uint8").repeat(90, 1))
    )
    photograph.save(tmp_path / "a.png")
    found = read_photograph(tmp_path / "a.png")
    assert (found[:30] == 255).all()
    np.testing.assert_array_equal(found[30:], np.asarray(photograph.convert("RGB"))[30:])


def test_16_bit_gray_is_scaled(tmp_path):
    levels = np.linspace(0, 65535, 256).astype("uint16")[None]
    Image.fromarray(levels).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_photograph(tmp_path / "a.png")[0, :, 0], np.arange(256))


def test_exif_rotation_is_applied(photograph, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    photograph.save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(
        read_photograph(tmp_path / "a.png"), np.rot90(np.asarray(photograph), -1)
    )


@pytest.mark.parametrize("size", [(1, 1), (20_000, 3)])
def test_sizes(size, tmp_path):
    Image.new("RGB", size, "red").save(tmp_path / "a.png")
    assert read_photograph(tmp_path / "a.png").shape == (*size[::-1], 3)


def test_a_tilde_is_the_home_directory(photograph, tmp_path, monkeypatch):
    photograph.save(tmp_path / "a.png")
    monkeypatch.setenv("HOME", str(tmp_path))
    np.testing.assert_array_equal(read_photograph("~/a.png"), np.asarray(photograph))


def test_errors(photograph, tmp_path, monkeypatch):
    with raises(f"There is no file {tmp_path}/no.jpg. Give the name of an image."):
        read_photograph(tmp_path / "no.jpg")
    with raises(
        f"{tmp_path} is a directory. Give the images in it, such as "
        f"`sorted(pathlib.Path('{tmp_path}').iterdir())`."
    ):
        read_photograph(tmp_path)
    with raises("`channels` must be one of 1, 3. Received: channels=4"):
        read_photograph(tmp_path / "no.jpg", channels=4)
    (tmp_path / "text.jpg").write_text("no image")
    with raises(
        f"{tmp_path}/text.jpg is not an image that Pillow can read. Convert it to JPEG or PNG."
    ):
        read_photograph(tmp_path / "text.jpg")
    for format in ("JPEG", "PNG"):
        stream = io.BytesIO()
        photograph.save(stream, format)
        (tmp_path / "half").write_bytes(stream.getvalue()[: len(stream.getvalue()) // 2])
        with pytest.raises(
            ValueError, match=f"{tmp_path}/half is truncated or damaged. Copy it again. "
        ):
            read_photograph(tmp_path / "half")
    Image.new("L", (20_000, 20_000)).save(tmp_path / "large.png")
    with pytest.raises(
        ValueError,
        match="large.png is too large to open safely. Resize it first. Image size",
    ):
        read_photograph(tmp_path / "large.png")


def test_error_without_pillow(photograph, tmp_path, monkeypatch):
    photograph.save(tmp_path / "a.png")
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with raises(
        "Reading images needs Pillow, which is not installed: `pip install pillow`.",
        kind=ImportError,
    ):
        read_photograph(tmp_path / "a.png")
