"""Images and models for tools/evaluate.py."""

import io

import keras
import numpy as np
import pytest
from PIL import Image

from keras_deit import presets
from tests.helpers import randomize, tiny_classifier, unseen_digits
from tests.tools.evaluate.helpers import write_folder


@pytest.fixture(scope="module")
def digits():
    """(images (360, 8, 8), labels) that the shipped model has not seen."""
    images, labels = unseen_digits()
    return images[..., 0], labels


@pytest.fixture
def val(digits, tmp_path):
    """30 digits."""
    images, labels = digits
    return write_folder(tmp_path / "val", images[:30], [str(label) for label in labels[:30]])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A model with ten classes and random weights."""
    folder = tmp_path_factory.mktemp("tiny")
    keras.utils.set_random_seed(1)
    rng = np.random.default_rng(1)
    randomize(
        tiny_classifier({"num_layers": 1}, num_classes=10, labels=list("0123456789")), rng
    ).save_to_preset(folder)
    return folder


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """A folder with an image per class of ImageNet, and a model that always ranks the classes in
    their order.
    """
    folder = tmp_path_factory.mktemp("imagenet")
    content = io.BytesIO()
    Image.new("RGB", (3, 4)).save(content, "JPEG")
    for number, synset in enumerate(presets.imagenet_synsets()):
        (folder / "val" / synset).mkdir(parents=True)
        (folder / "val" / synset / f"ILSVRC2012_val_{50_000 - number:08d}.JPEG").write_bytes(
            content.getvalue()
        )
    keras.utils.set_random_seed(1)
    classifier = tiny_classifier(
        {"num_layers": 1, "use_distillation_token": False},
        num_classes=1000,
        labels=presets.imagenet_labels(),
    )
    kernel, bias = classifier.head.weights
    kernel.assign(np.zeros(kernel.shape))
    bias.assign(-np.arange(1000))
    classifier.save_to_preset(folder / "model")
    return folder
