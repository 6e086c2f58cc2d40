"""Images as people have them: in files, or opened with Pillow."""

import os
import pathlib
import sys
import warnings

import numpy as np

from keras_deit.arguments import check_choice


def read_photograph(path, channels=3):
    """Reads an image upright, in 8 bits: what EXIF says of its rotation is done, what is
    transparent is white, CMYK is RGB.

    Args:
        path: file in a format that Pillow reads; `~` is the home directory. Of several frames the
            first is read.
        channels: int. 3 for RGB, or 1 for gray. Defaults to 3.

    Returns:
        uint8 array (height, width, channels), 0 to 255.

    Raises:
        ValueError: there is no such file; it is not an image, cut short, or of more than
            178,956,970 pixels.
        ImportError: Pillow is not installed.
    """
    check_choice("channels", channels, (1, 3))
    path = check_file(path)
    pil = _pillow()
    try:
        with warnings.catch_warnings():
            # Pillow's error, at twice as many pixels, is the limit.
            warnings.simplefilter("ignore", pil.Image.DecompressionBombWarning)
            with pil.Image.open(path) as image:
                return pixels(image, channels)
    except pil.Image.DecompressionBombError as error:
        raise ValueError(
            f"{path} has too many pixels to be opened safely. Scale it down first. {error}"
        ) from error
    except pil.UnidentifiedImageError as error:
        raise ValueError(
            f"{path} is not an image, or of a format that Pillow does not read. Convert it to JPEG "
            "or PNG."
        ) from error
    except (OSError, SyntaxError, EOFError) as error:  # Pillow's decoders end so on broken files
        raise ValueError(
            f"{path} is cut short or damaged. Copy it again. {type(error).__name__}: {error}"
        ) from error


def is_picture(value):
    """Whether this is a path or an image of Pillow."""
    pillow = sys.modules.get("PIL.Image")  # who has such an image has imported it
    return isinstance(value, (str, os.PathLike)) or (
        pillow is not None and isinstance(value, pillow.Image)
    )


def read_picture(picture, channels):
    """As `read_photograph`, of a path or an image of Pillow."""
    return (
        read_photograph(picture, channels)
        if isinstance(picture, (str, os.PathLike))
        else pixels(picture, channels)
    )


def check_file(path):
    """The path, of a file that is there."""
    path = pathlib.Path(os.path.expanduser(path))
    if path.is_dir():
        raise ValueError(
            f"{path} is a directory. Give the images in it, such as "
            f"`sorted(pathlib.Path({str(path)!r}).iterdir())`."
        )
    if not path.is_file():
        raise ValueError(f"There is no file {path}. Give the name of an image.")
    return path


def pixels(image, channels):
    """(height, width, channels), uint8, of an image of Pillow."""
    image = _pillow().ImageOps.exif_transpose(image)
    return np.array(_flat(image).convert("RGB" if channels == 3 else "L")).reshape(
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


def _flat(image):
    """Without transparency, and in 8 bits."""
    module = _pillow().Image
    if image.mode.startswith("I"):  # 16 bits of gray, which `convert` would cut off at 255
        return module.fromarray(
            np.rint(np.asarray(image, "float64").clip(0, 65535) / 257).astype("uint8")
        )
    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    white = module.new("RGBA", image.size, "white")
    return module.alpha_composite(white, image)
