"""`examples/train.py`, in this process but where one is killed."""

import csv
import importlib.util
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import h5py
import keras
import numpy as np
import pytest
from absl.testing import flagsaver

from keras_deit.layers import DeiTImageConverter
from keras_deit.models import DeiTBackbone, DeiTImageClassifier

pytest.importorskip("tensorflow")
SCRIPT = pathlib.Path(__file__).parent.parent / "examples" / "train.py"


@pytest.fixture(scope="module")
def train():
    spec = importlib.util.spec_from_file_location("train", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["train"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A folder with images of two classes, a preset and a teacher."""
    folder = tmp_path_factory.mktemp("given")
    rng = np.random.default_rng(0)
    for part, count in (("train", 10), ("val", 3)):
        for label in ("cat", "dog"):
            (folder / "photos" / part / label).mkdir(parents=True)
            for index in range(count):
                image = rng.integers(0, 256, (24, 20 + index, 3))
                keras.utils.save_img(folder / "photos" / part / label / f"{index}.png", image, scale=False)
    backbone = DeiTBackbone((32, 32, 3), 16, 2, 2, 16, 32, use_distillation_token=True, data_format="channels_last")
    DeiTImageClassifier(backbone, 5, preprocessor=DeiTImageConverter(32)).save_to_preset(folder / "tiny")
    teacher = keras.Sequential([keras.Input((32, 32, 3)), keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(2)])
    teacher.save(folder / "teacher.keras")
    return folder


def flags(given, output, **overrides):
    common = {
        "data": str(given / "photos"),
        "preset": str(given / "tiny"),
        "output": str(output),
        "recipe": "deit",
        "epochs": 3,
        "batch_size": 5,
        "learning_rate": 0.5,
        "ema_momentum": 0.9,
        "jit": "off",
    }
    return {**common, **overrides}


def run(train, given, output, **overrides):
    parsed = {} if train.FLAGS.is_parsed() else train.FLAGS(["train", "--data=", "--preset=", "--output="])
    del parsed
    with flagsaver.flagsaver(**flags(given, output, **overrides)):
        train.main(None)
    return output


def states(output, epoch=3):
    """All arrays of the checkpoint: weights, optimizer, averages; and the seeds."""
    folder = output / "checkpoints" / f"epoch_{epoch:05d}"
    arrays = {}
    with h5py.File(folder / "training.weights.h5") as file:
        file.visititems(lambda name, item: arrays.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
    return {**arrays, "seeds": np.array(json.loads((folder / "state.json").read_text())["seeds"])}


def test_killed_in_the_middle_of_an_epoch_it_ends_as_if_nothing_had_happened(train, given, tmp_path):
    taught = {"teacher": str(given / "teacher.keras")}
    expected = states(run(train, given, tmp_path / "unbroken", **taught))

    output = tmp_path / "killed"
    arguments = [f"--{name}={value}" for name, value in flags(given, output, **taught).items()]
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parent.parent)}
    process = subprocess.Popen(
        [sys.executable, SCRIPT, *arguments], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.time() + 300
    while not (output / "checkpoints" / "epoch_00001").exists() and time.time() < deadline:
        assert process.poll() is None, "it ended by itself"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (output / "checkpoints" / "epoch_00003").exists()

    resumed = states(run(train, given, output, **taught))
    assert resumed.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(resumed[name], array, err_msg=name)
    with open(output / "log.csv", newline="") as stream:
        assert {row["epoch"] for row in csv.DictReader(stream)} == {"0", "1", "2"}


def test_what_it_leaves(train, given, tmp_path):
    output = run(train, given, tmp_path / "run", recipe="deit3_small_fine_tune_384", image_size=48)
    assert (output / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert list((output / "tensorboard" / "train").glob("events.*"))
    best = DeiTImageClassifier.from_preset(output / "best")
    assert best.labels == ["cat", "dog"]
    assert best.backbone.image_shape == (48, 48, 3)
    assert best.preprocessor.image_size == (48, 48)
    with open(output / "log.csv", newline="") as stream:
        accuracies = [float(row["val_accuracy"]) for row in csv.DictReader(stream)]
    assert json.loads((output / "best.json").read_text())["accuracy"] == max(accuracies)
    # The best is what was validated: the average of the weights.
    images, labels = [], []
    for label, name in enumerate(best.labels):
        for file in sorted((given / "photos" / "val" / name).iterdir()):
            images.append(best.preprocessor(keras.utils.img_to_array(keras.utils.load_img(file))))
            labels.append(label)
    correct = keras.ops.convert_to_numpy(best(keras.ops.stack(images))).argmax(-1) == np.array(labels)
    assert correct.mean() == pytest.approx(max(accuracies))
