"""Photographs from files, as people have them."""

import pathlib
import warnings

import numpy as np

from keras_deit.layers.arguments import check_choice


def read_photograph(path, channels=3):
    """Reads an image upright, in 8 bits: what EXIF says of its rotation is done, what is transparent is white, CMYK is RGB.

    Args:
        path: file in a format that Pillow reads. Of several frames the first is read.
        channels: int. 3 for RGB, or 1 for gray. Defaults to 3.

    Returns:
        uint8 array (height, width, channels), 0 to 255.

    Raises:
        ValueError: there is no such file; it is not an image, cut short, or of more than 178,956,970 pixels.
        ImportError: Pillow is not installed.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    check_choice("channels", channels, (1, 3))
    path = pathlib.Path(path)
    if not path.is_file():
        raise ValueError(f"There is no file {path}. Give the name of an image.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", Image.DecompressionBombWarning
            )  # Pillow's error, at twice as many pixels, is the limit
            with Image.open(path) as image:
                image = ImageOps.exif_transpose(image)
                return np.array(_flat(image).convert("RGB" if channels == 3 else "L")).reshape(*image.size[::-1], channels)
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path} has too many pixels to be opened safely. Scale it down first. {error}") from error
    except UnidentifiedImageError as error:
        raise ValueError(
            f"{path} is not an image, or of a format that Pillow does not read. Convert it to JPEG or PNG."
        ) from error
    except (OSError, SyntaxError, EOFError) as error:  # Pillow's decoders end so on broken files
        raise ValueError(f"{path} is cut short or damaged. Copy it again. {type(error).__name__}: {error}") from error


def _flat(image):
    """Without transparency, and in 8 bits."""
    from PIL import Image

    if image.mode.startswith("I"):  # 16 bits of gray, which `convert` would cut off at 255
        return Image.fromarray(np.rint(np.asarray(image, "float64").clip(0, 65535) / 257).astype("uint8"))
    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image)
