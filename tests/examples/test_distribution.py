"""What two devices compute together is what one computes alone."""

import csv
import os
import pathlib
import socket
import subprocess
import sys
import time

import keras
import numpy as np
import pytest

from tests.examples.conftest import flags

pytestmark = [pytest.mark.backend, pytest.mark.process]

pytest.importorskip("tensorflow")
BACKEND = keras.backend.backend()
ROOT = pathlib.Path(__file__).parents[2]
TWO_DEVICES = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}


def start(given, output, distribution, **environment):
    settings = flags(
        given,
        output,
        recipe="unmixed",
        epochs=2,
        teacher=str(given / "teacher.keras"),
        distribution=distribution,
    )
    return subprocess.Popen(
        [
            sys.executable,
            ROOT / "tests" / "examples" / "train_on_two.py",
            *(f"--{k}={v}" for k, v in settings.items()),
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    _, errors = process.communicate(timeout=400)
    return process.returncode, errors


def log(given, output, distribution, **environment):
    """Loss and accuracy, in training and in validation, of each epoch."""
    code, errors = finish(start(given, output, distribution, **environment))
    assert code == 0, errors
    return read(output)


def read(output):
    with open(output / "log.csv", newline="") as stream:
        return np.array(
            [[float(value) for value in row.values()] for row in csv.DictReader(stream)]
        )


@pytest.fixture(scope="module")
def alone(given, tmp_path_factory):
    found = log(given, tmp_path_factory.mktemp("alone") / "run", "none")
    # Epoch; accuracy, loss and its two parts; accuracy and loss of validation
    assert found.shape == (2, 7)
    return found


@pytest.mark.skipif(BACKEND != "tensorflow", reason="of TensorFlow")
def test_mirrored(alone, given, tmp_path):
    np.testing.assert_allclose(log(given, tmp_path / "run", "mirrored"), alone, atol=1e-4)


@pytest.mark.skipif(BACKEND != "jax", reason="of JAX")
@pytest.mark.parametrize("distribution", ["data_parallel", "model_parallel"])
def test_two_devices(alone, given, tmp_path, distribution):
    np.testing.assert_allclose(
        log(given, tmp_path / "run", distribution, **TWO_DEVICES), alone, atol=1e-4
    )


@pytest.mark.skipif(BACKEND != "jax", reason="of JAX")
def test_two_processes_of_which_one_is_killed(alone, given, tmp_path):
    def start_both():
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        names = {
            "KERAS_DISTRIBUTION_JOB_ADDRESSES": address,
            "KERAS_DISTRIBUTION_NUM_PROCESSES": "2",
        }
        return [
            start(
                given,
                tmp_path / "run",
                "data_parallel",
                **names,
                KERAS_DISTRIBUTION_PROCESS_ID=str(index),
            )
            for index in (0, 1)
        ]

    first, second = start_both()
    while not (tmp_path / "run" / "checkpoints" / "epoch_00001").exists():
        assert first.poll() is None, finish(first)[1]
        time.sleep(0.005)
    second.kill()
    second.communicate()
    code, errors = finish(first)
    assert code == 1
    assert "A process of the training failed. Start all of them again" in errors
    for code, errors in map(finish, start_both()):
        assert code == 0, errors
    np.testing.assert_allclose(read(tmp_path / "run"), alone, atol=1e-4)
