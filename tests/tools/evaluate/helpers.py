"""Runs tools/evaluate.py on folders that the tests write."""

import csv

import numpy as np
import pytest
from PIL import Image

from keras_deit.models import DeiTImageClassifier
from tests.scripts import load_script, run_script

tool = load_script("tools/evaluate.py")

DIGITS = "deit_nano_distilled_patch4_32_digits"


def write_folder(folder, images, class_names, suffix="png"):
    """A file for each image, in a folder of its class."""
    for number, (image, name) in enumerate(zip(images, class_names)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / name / f"{number:03d}.{suffix}")
    return folder


def run(data_dir, output, preset=DIGITS, **overrides):
    """Runs the program and returns the rows of the table."""
    run_script(tool, data_dir=str(data_dir), preset=str(preset), output=str(output), **overrides)
    with open(output, newline="") as stream:
        return list(csv.DictReader(stream))


def refusal(data_dir, output, preset=DIGITS, **overrides):
    with pytest.raises(SystemExit) as error:
        run(data_dir, output, preset, **overrides)
    return str(error.value)


def figures(row):
    return {name: value for name, value in row.items() if name != "images_per_second"}


def answers(images, preset=DIGITS):
    """Predictions of a model, without this program."""
    classifier = DeiTImageClassifier.from_preset(preset)
    channels = classifier.backbone.image_shape[-1]
    return classifier.predict(np.repeat(images[..., None], channels, axis=-1), verbose=0).argmax(-1)
