"""ImageNet: its synsets, and ReaL labels."""

import importlib.util
import json
import pathlib
import sys

import pytest

from keras_deit import presets
from tests.scripts import set_flags
from tests.tools.evaluate.helpers import refusal, run, tool

counts = sys.modules["evaluation.counts"]
batches = sys.modules["evaluation.batches"]


def write_real_labels(path, **lists):
    content = [[]] * 50_000
    for number, classes in lists.items():
        content[int(number.removeprefix("image_")) - 1] = classes
    path.write_text(json.dumps(content))
    return path


@pytest.mark.slow
def test_imagenet_and_real_labels(imagenet, tmp_path):
    real = write_real_labels(
        tmp_path / "real.json", image_50000=[7], image_49999=[0], image_49001=[0, 999], image_1=[0]
    )
    (row,) = run(
        imagenet / "val",
        tmp_path / "table.csv",
        imagenet / "model",
        real_labels=real,
        batch_size=200,
    )
    assert (row["top1_acc(%)"], row["top5_acc(%)"], row["real_acc(%)"]) == (
        "0.100",
        "0.500",
        "66.667",
    )
    assert (row["images"], row["corrupt_images"]) == ("1000", "0")
    # All rows of a table have ReaL accuracy, or none.
    text = (tmp_path / "table.csv").read_text().replace("66.667", "")
    (tmp_path / "table.csv").write_text(text)
    assert "model: the row has no ReaL accuracy" in refusal(
        imagenet / "val", tmp_path / "table.csv", imagenet / "model", real_labels=real
    )


def test_errors_on_real_labels(imagenet, val, tmp_path):
    path = tmp_path / "real.json"

    def said(folder=imagenet / "val"):
        message = refusal(
            folder, tmp_path / "table.csv", imagenet / "model", real_labels=path
        ).removeprefix(f"Not evaluated. --real_labels {path}: ")
        return message

    assert said(val) == (
        "ReaL labels exist for ImageNet's validation set only, but the images do not have its 1000 "
        "synsets as classes. Leave the flag out."
    )
    assert said().startswith("The file cannot be read. [Errno 2] No such file or directory")
    path.write_text("[[1], [")
    assert said().startswith(
        "The file is not JSON. Download real.json of google-research/reassessed-imagenet again. "
    )
    for content in ([[0]] * 49_999, [[0]] * 49_999 + [[1000]], [[0]] * 49_999 + [0], {"0": [1]}):
        path.write_text(json.dumps(content))
        assert said() == (
            "The file must contain 50000 lists of classes from 0 to 999. Download real.json of "
            "google-research/reassessed-imagenet."
        )
    others = tmp_path / "others"
    for synset in presets.imagenet_synsets():
        (others / synset).mkdir(parents=True)
        (others / synset / f"{synset}_1.JPEG").touch()
    write_real_labels(path)
    assert said(others) == (
        "The images must have the names of ImageNet's validation set, "
        "ILSVRC2012_val_00000001.JPEG to ILSVRC2012_val_00050000.JPEG. Received: "
        + ", ".join(f"{synset}_1.JPEG" for synset in presets.imagenet_synsets()[:5])
        + ", ..."
    )


def test_synsets_are_in_the_order_of_the_labels():
    synsets = presets.imagenet_synsets()
    assert len(set(synsets)) == 1000
    assert list(synsets) == sorted(synsets)
    names = dict(zip(synsets, presets.imagenet_labels()))
    assert names["n02012849"] == names["n03126707"] == "crane"  # a bird and a machine
    assert (names["n01440764"], names["n15075141"][:13]) == ("tench, Tinca tinca", "toilet tissue")
    # TensorFlow Datasets' list is in another order.
    package = pathlib.Path(importlib.util.find_spec("tensorflow_datasets").origin).parent
    others = (package / "image_classification" / "imagenet_resized_labels.txt").read_text().split()
    assert sorted(others) == list(synsets)


def test_exif_is_applied_except_on_imagenet(imagenet, tiny, val, monkeypatch):
    given = []
    monkeypatch.setattr(
        batches, "image_reader", lambda *_, upright, unreadable: given.append(upright)
    )
    set_flags(tool, data_dir="", preset="")
    for folder, model in ((imagenet / "val", imagenet / "model"), (val, tiny)):
        classifier = counts.load_classifier(str(model), tool.FLAGS)
        batches.label_reader(classifier, tool.open_images(str(folder)), {})
    assert given == [False, True]
