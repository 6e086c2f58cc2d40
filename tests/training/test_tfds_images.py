"""Datasets of TensorFlow Datasets, made here."""

import sys

import numpy as np
import pytest

pytest.importorskip("tensorflow")
tfds = pytest.importorskip("tensorflow_datasets")

from keras_deit.training.image_reader import image_reader  # noqa: E402
from keras_deit.training.tfds_images import TfdsImages  # noqa: E402
from tests.helpers import raises  # noqa: E402


class GraySquares(tfds.core.GeneratorBasedBuilder):
    """Square number n has level n."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(None, None, 1)),
            "label": tfds.features.ClassLabel(names=["even", "odd"]),
            "file_name": tfds.features.Text(),
        }
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features), supervised_keys=("image", "label")
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(5), "test": self._generate_examples(3)}

    def _generate_examples(self, count=0):
        for level in range(count):
            image = np.full((4, 4, 1), level, "uint8")
            yield level, {"image": image, "label": level % 2, "file_name": f"{level}.png"}


class TestSplitOnly(GraySquares):
    __test__ = False  # no class of tests

    def _split_generators(self, dl_manager):
        return {"test": self._generate_examples(3)}


class WithoutClasses(GraySquares):
    def _info(self):
        features = {"image": tfds.features.Image(shape=(None, None, 1))}
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))


@pytest.fixture(autouse=True)
def data_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))


@pytest.mark.parametrize(("training", "split", "count"), [(True, "train", 5), (False, "test", 3)])
def test_splits(training, split, count):
    images = TfdsImages.open("gray_squares", training)
    assert len(images) == count
    assert images.identity == f"gray_squares/1.0.0:{split}"
    assert images.class_names == ("even", "odd")
    read = image_reader(images)
    found = list(images.dataset().map(lambda *element: read(element)).as_numpy_iterator())
    levels = [int(image[0, 0, 0]) for image, _ in found]
    assert sorted(levels) == list(range(count))
    assert [int(label) for _, label in found] == [level % 2 for level in levels]
    assert images.file_names() == tuple(f"{level}.png" for level in levels)


def test_errors(monkeypatch):
    with raises(
        "The dataset test_split_only must have a split `train`. Received: test",
    ):
        TfdsImages.open("test_split_only", training=True)
    with pytest.raises(
        ValueError,
        match="Expected a dataset of images with one class each. Received: without_classes with ",
    ):
        TfdsImages.open("without_classes")
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with raises(
        "Reading the dataset cifar10 needs TensorFlow Datasets: `pip install tensorflow-datasets`."
    ):
        TfdsImages.open("cifar10")
