"""Data that needs no download: scikit-learn's handwritten digits."""

import numpy as np

PRESET = "deit_nano_distilled_patch4_32_digits"
_TRAINED_ON = 1437  # of 1797, tools/train_digits.py


def training_digits():
    """(images (1437, 8, 8, 1), 0 to 255; labels) that the preset was trained on."""
    images, labels = _digits()
    return images[:_TRAINED_ON], labels[:_TRAINED_ON]


def test_digits():
    """(images (360, 8, 8, 1), 0 to 255; labels) that the preset has not seen."""
    images, labels = _digits()
    return images[_TRAINED_ON:], labels[_TRAINED_ON:]


def _digits():
    from sklearn.datasets import load_digits  # imported here, because run.py only needs PRESET

    digits = load_digits()
    return np.round(digits.images[..., None] * (255 / 16)).astype("uint8"), digits.target
