"""Images from which the ranges of activations are learned."""

import os
import pathlib

from keras_deit.images import check_file

FORMATS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp")
MOST = 128


def find_images(folder):
    """Paths of at most `MOST` images in a folder and its subfolders, spread evenly."""
    folder = pathlib.Path(os.path.expanduser(folder))
    if not folder.is_dir():
        raise ValueError(f"There is no folder {folder}. Give a folder of images.")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in FORMATS)
    if not paths:
        raise ValueError(
            f"The folder {folder} has no images. Expected files ending in {', '.join(FORMATS)}."
        )
    step = max(1, -(-len(paths) // MOST))
    return [check_file(path) for path in paths[::step]]
