"""What cannot be evaluated."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from tests.helpers import tiny_backbone, tiny_classifier
from tests.tools.evaluate.helpers import DIGITS, refusal, tool


@pytest.mark.slow
def test_classes_of_another_model(val, imagenet, tmp_path):
    (val / "9").rename(val / "nine")
    assert refusal(val, tmp_path / "table.csv") == (
        f"Not evaluated. --preset {DIGITS}: The images must have the 10 classes of the model, "
        "named by its labels. Rename the folders, or choose another model. Received: 10 classes; "
        "missing: 9; unknown: nine"
    )
    assert refusal(val, tmp_path / "table.csv", imagenet / "model") == (
        f"Not evaluated. --preset {imagenet / 'model'}: The images must have the 1000 classes of "
        "the model, named by ImageNet synset. Rename the folders, or choose another model. "
        "Received: 10 classes; missing: n01440764, n01443537, n01484850, n01491361, n01494475, "
        "...; unknown: 0, 1, 2, 3, 4, ..."
    )
    tiny_classifier(num_classes=10, labels=None).save_to_preset(tmp_path / "nameless")
    assert refusal(val, tmp_path / "table.csv", tmp_path / "nameless") == (
        f"Not evaluated. --preset {tmp_path / 'nameless'}: The preset has no labels, so its "
        "outputs have no class names. Save it again with "
        "`DeiTImageClassifier.from_preset(handle, labels=[...]).save_to_preset(directory)`."
    )
    (val / "0" / "empty").mkdir()
    for file in (val / "1").iterdir():
        file.unlink()
    assert "must contain readable images" in refusal(val, tmp_path / "table.csv")
    assert not (tmp_path / "table.csv").exists()


@pytest.mark.slow
def test_errors_name_the_flag(val, tmp_path):
    output = tmp_path / "table.csv"
    flat = tmp_path / "flat"
    flat.mkdir()
    Image.new("L", (2, 2)).save(flat / "ILSVRC2012_val_00000001.JPEG")
    tiny_backbone().save_to_preset(tmp_path / "backbone")
    labels = list("0123456789")
    tiny_classifier(num_classes=10, labels=labels, preprocessor=None).save_to_preset(
        tmp_path / "unprepared"
    )
    # The mean of the two heads overflows, and the softmax of infinities is NaN.
    broken = tiny_classifier(num_classes=10, labels=labels, activation="softmax")
    for bias in (broken.head.weights[1], broken.head.weights[3]):
        bias.assign(np.full(bias.shape, 3e38))
    broken.save_to_preset(tmp_path / "broken")
    for message, arguments in {
        f"--data_dir {tmp_path / 'none'}: The folder {tmp_path / 'none'} does not exist.": (
            tmp_path / "none",
            output,
        ),
        f"The folder {flat / 'ILSVRC2012_val_00000001.JPEG'} does not exist.": (
            flat / "ILSVRC2012_val_00000001.JPEG",
            output,
        ),
        f"--data_dir {flat}: Expected one subfolder of images per class. ImageNet's": (
            flat,
            output,
        ),
        "and 'deit_tiny' is neither a name nor an existing path.": (
            val,
            output,
            f"{DIGITS},deit_tiny",
        ),
        "--preset must list one or more models. Received: none": (
            val,
            output,
            "",
        ),
        "has no head. Use `num_classes=`": (val, output, tmp_path / "backbone"),
        "The preset must have a `DeiTImageConverter` as its preprocessor. Save it again with ": (
            val,
            output,
            tmp_path / "unprepared",
        ),
        f"--preset {tmp_path / 'broken'}: The outputs are NaN. Use another --dtype.": (
            val,
            output,
            tmp_path / "broken",
        ),
        "Is a directory": (val, tmp_path),
    }.items():
        assert message in refusal(*arguments), message
    assert "`crop_ratio` must be in (0, 1]" in refusal(val, output, crop_ratio=1.5)
    assert "float33" in refusal(val, output, dtype="float33")
    assert not output.exists()
    assert not list(tmp_path.glob(".*"))


def test_labels_that_are_no_classes(val, tiny, tmp_path, monkeypatch):
    """The test split of some TensorFlow datasets has the label -1. It was a traceback."""
    images = tool.open_images(str(val))
    unlabelled = dataclasses.replace(images, labels=(-1,) * len(images))
    monkeypatch.setattr(tool, "open_images", lambda _: unlabelled)
    message = refusal(val, tmp_path / "table.csv", tiny)
    assert message == (
        f"Not evaluated. A label of {images.identity} is not one of its 10 classes. Choose images "
        "that are labelled."
    )
