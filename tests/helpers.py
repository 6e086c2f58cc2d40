"""What several tests use: errors by their full text, random weights, tiny models."""

import contextlib
import hashlib
import json

import keras
import numpy as np
import pytest

from keras_deit.layers import DeiTImageConverter
from keras_deit.models import DeiTBackbone, DeiTImageClassifier


@contextlib.contextmanager
def raises(message, kind=ValueError):
    """The block raises `kind` with exactly this text."""
    with pytest.raises(kind) as caught:
        yield
    assert str(caught.value) == message


def randomize(layer, rng, scale=0.3):
    """Gives every weight random values, so that no path is hidden by zeros or by tiny numbers."""
    for variable in layer.weights:
        variable.assign(
            rng.normal(0.0, scale, variable.shape)
            + (1.0 if variable.path.endswith("gamma") else 0.0)
        )
        if variable.path.endswith("moving_variance"):
            variable.assign(rng.uniform(0.5, 2.0, variable.shape))
    return layer


def numpy(tensor):
    return keras.ops.convert_to_numpy(tensor)


def tiny_backbone(**overrides):
    """Sizes that differ from each other, so that a swapped axis fails: H != W, heads != layers,
    patches not square.
    """
    config = {
        "image_shape": (12, 32, 3),
        "patch_size": (4, 8),
        "num_layers": 3,
        "num_heads": 2,
        "hidden_dim": 8,
        "intermediate_dim": 20,
        "data_format": "channels_last",
    }
    return DeiTBackbone(**{**config, **overrides})


def tiny_classifier(backbone_overrides=None, **overrides):
    backbone = tiny_backbone(**{"use_distillation_token": True, **(backbone_overrides or {})})
    config = {
        "num_classes": 5,
        "preprocessor": DeiTImageConverter((12, 32), data_format="channels_last"),
        "labels": ["ant", "bee", "cat", "dog", "eel"],
    }
    return DeiTImageClassifier(backbone, **{**config, **overrides})


def edit_json(file, change):
    """Changes the content of a JSON file, and the checksum of a preset's file with it."""
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    sign(file.parent)


def sign(directory):
    """Makes the checksums of a preset those of its files, as somebody who attacks would."""
    file = directory / "metadata.json"
    metadata = json.loads(file.read_text()) if file.exists() else {}
    if isinstance(metadata.get("files"), dict):
        for name in metadata["files"]:
            if (directory / name).exists():
                content = (directory / name).read_bytes()
                metadata["files"][name] = hashlib.sha256(content).hexdigest()
        file.write_text(json.dumps(metadata))


def images(rng, batch=4, shape=(12, 32, 3)):
    return rng.normal(size=(batch, *shape)).astype("float32")


def raw_images(rng, batch=4, shape=(20, 30, 3)):
    return rng.integers(0, 256, size=(batch, *shape)).astype("uint8")


def unseen_digits():
    """(images (360, 8, 8, 1), labels) that the model that ships has never seen."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.round(digits.images[-360:, ..., None] * (255 / 16)).astype("uint8")
    return images, digits.target[-360:]


def same_arrays(first, second):
    first, second = keras.tree.flatten(first), keras.tree.flatten(second)
    assert len(first) == len(second)
    for a, b in zip(first, second):
        np.testing.assert_array_equal(numpy(a), numpy(b))
