"""Processes that save and load one preset at the same time."""

import os
import subprocess
import sys

import pytest

from tests.helpers import tiny_classifier

pytestmark = [pytest.mark.process, pytest.mark.slow]

# All weights of a version are the same number, so that a mixture shows.
SCRIPT = """
import itertools, os, sys
import keras
import numpy as np
from keras_deit import atomic
from keras_deit.models import DeiTImageClassifier

role, directory, rounds, way = sys.argv[1:]
if way == "two renames":
    atomic._exchanged = lambda first, second: False
classifier = DeiTImageClassifier.from_preset(directory, load_weights=False)
seen = set()
for number in itertools.count():
    # A process that starts late must meet the others, too.
    met = len(seen) > 5 if role == "load" else os.path.exists(directory + ".stop")
    if number >= int(rounds) and met:
        break
    if role == "load":
        numbers = {
            value
            for array in DeiTImageClassifier.from_preset(directory).get_weights()
            for value in np.unique(array)
        }
        assert len(numbers) == 1, numbers
        seen |= numbers
    else:
        value = number + (100_000 if role == "second" else 0)
        classifier.set_weights([np.full_like(array, value) for array in classifier.get_weights()])
        classifier.save_to_preset(directory)
"""


@pytest.mark.parametrize(
    ("way", "rounds"),
    [pytest.param("exchange", "100", marks=pytest.mark.backend), ("two renames", "40")],
)
def test_a_load_gets_one_version_whole_and_no_save_fails(way, rounds, tmp_path):
    """Two savers and two loaders."""
    directory = tmp_path / "preset"
    classifier = tiny_classifier({"num_layers": 1})
    classifier.set_weights([0 * array for array in classifier.get_weights()])
    classifier.save_to_preset(directory)
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, role, str(directory), rounds, way],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for role in ("first", "second", "load", "load")
    ]
    results = []
    for process in reversed(processes):
        results.append((*process.communicate(), process.returncode))
        if len(results) == 2:
            (tmp_path / "preset.stop").touch()
    for _, errors, code in results:
        assert code == 0, errors
    assert {entry.name for entry in tmp_path.iterdir()} == {"preset", "preset.stop"}
