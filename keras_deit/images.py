"""Reads images as 8-bit arrays: from files, from their bytes, or from PIL images."""

import os
import pathlib
import sys
import warnings

import numpy as np

from keras_deit.arguments import check_choice


def read_photograph(path: str | os.PathLike, channels: int = 3) -> np.ndarray:
    """Reads an image file as an array.

    The image is rotated as its EXIF tag says. Transparent pixels become white, CMYK becomes RGB,
    and 16-bit gray is scaled to 8 bits. Of an animation, the first frame is read.

    Args:
        path: file in a format that Pillow reads. `~` is the home directory.
        channels: 3 for RGB or 1 for gray. Defaults to 3.

    Returns:
        uint8 array of shape (height, width, channels), 0 to 255.

    Raises:
        ValueError: if the file does not exist, is not an image, is truncated, or has more than
            178,956,970 pixels.
        ImportError: if Pillow is not installed.
    """
    check_choice("channels", channels, (1, 3))
    path = check_file(path)
    return decode_image(path, path, channels)


def decode_image(file, name, channels=3, upright=True):
    """Decodes a path or a binary stream, as `read_photograph` does.

    Args:
        file: path or binary stream.
        name: what errors call the image.
        channels: 3 for RGB or 1 for gray.
        upright: whether to rotate the image as its EXIF tag says. Defaults to `True`.
    """
    pil = _pillow()
    try:
        with warnings.catch_warnings():
            # Pillow warns at this limit and raises an error at twice the limit.
            warnings.simplefilter("ignore", pil.Image.DecompressionBombWarning)
            with pil.Image.open(file) as image:
                return pixels(image, channels, upright)
    except pil.Image.DecompressionBombError as error:
        raise ValueError(f"{name} is too large to open safely. Resize it first. {error}") from error
    except pil.UnidentifiedImageError as error:
        raise ValueError(
            f"{name} is not an image that Pillow can read. Convert it to JPEG or PNG."
        ) from error
    except PermissionError as error:
        raise ValueError(f"{name} may not be read. Change its permissions. {error}") from error
    except Exception as error:  # Pillow's decoders raise many types on damaged files
        raise ValueError(
            f"{name} is truncated or damaged. Copy it again. {type(error).__name__}: {error}"
        ) from error


def is_picture(value):
    """Whether this is a path or a PIL image."""
    pillow = sys.modules.get("PIL.Image")  # a PIL image exists only after this import
    return isinstance(value, (str, os.PathLike)) or (
        pillow is not None and isinstance(value, pillow.Image)
    )


def read_picture(picture, channels):
    """As `read_photograph`, from a path or a PIL image."""
    return (
        read_photograph(picture, channels)
        if isinstance(picture, (str, os.PathLike))
        else pixels(picture, channels)
    )


def check_file(path):
    """Returns the path with `~` expanded if it is a file, and raises `ValueError` otherwise."""
    path = pathlib.Path(os.path.expanduser(path))
    if path.is_dir():
        raise ValueError(
            f"{path} is a directory. Give the images in it, such as "
            f"`sorted(pathlib.Path({str(path)!r}).iterdir())`."
        )
    if not path.exists():
        raise ValueError(f"There is no file {path}. Give the name of an image.")
    if not path.is_file():  # reading a pipe would wait forever
        raise ValueError(f"{path} is a pipe or a device. Give the name of an image.")
    return path


def pixels(image, channels, upright=True):
    """The pixels of a PIL image, (height, width, channels), uint8."""
    if upright:
        image = _pillow().ImageOps.exif_transpose(image)
    return np.array(_opaque(image).convert("RGB" if channels == 3 else "L")).reshape(
        *image.size[::-1], channels
    )


def _pillow():
    try:
        import PIL.Image
        import PIL.ImageOps
    except ImportError as error:
        raise ImportError(
            "Reading images needs Pillow, which is not installed: `pip install pillow`."
        ) from error
    return PIL


def _opaque(image):
    """The image on a white background, with 8 bits per channel."""
    module = _pillow().Image
    if image.mode.startswith("I"):  # 16-bit gray, which `convert` would clip at 255
        return module.fromarray(
            np.rint(np.asarray(image, "float64").clip(0, 65535) / 257).astype("uint8")
        )
    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    white = module.new("RGBA", image.size, "white")
    return module.alpha_composite(white, image)
