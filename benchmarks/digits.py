"""The data that is there without a download: scikit-learn's handwritten digits."""

import numpy as np

PRESET = "deit_nano_distilled_patch4_32_digits"
_TRAINED_ON = 1437  # of 1797, tools/train_digits.py


def training_digits():
    """(images (1437, 8, 8, 1) of 0 to 255, labels), which the preset was trained on."""
    images, labels = _digits()
    return images[:_TRAINED_ON], labels[:_TRAINED_ON]


def test_digits():
    """(images (360, 8, 8, 1), labels), which it has never seen."""
    images, labels = _digits()
    return images[_TRAINED_ON:], labels[_TRAINED_ON:]


def _digits():
    from sklearn.datasets import load_digits  # here: run.py wants the name of the preset alone

    digits = load_digits()
    return np.round(digits.images[..., None] * (255 / 16)).astype("uint8"), digits.target
