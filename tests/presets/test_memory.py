"""What loading costs beside the weights themselves."""

import os
import subprocess
import sys

import numpy as np
import pytest

from keras_deit.presets.catalog import ARCHITECTURES
from keras_deit.presets.pytorch.tensor_names import rules
from tests.hub_layouts import timm_config, write_folder

pytestmark = pytest.mark.backend


@pytest.mark.process
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_loading_base_takes_less_than_two_and_a_half_times_its_weights(tmp_path):
    row = ARCHITECTURES["deit_base_patch16_224"]
    table = rules(row.backbone_config, row.classifier_config)
    tensors = {
        name: np.ones(shape, "float32")
        for rule in table
        for name, shape in zip(rule.names, rule.shapes)
    }
    folder = write_folder(
        tmp_path / "base", tensors, config=timm_config(row.name, (224, 224), 1000)
    )
    script = '''
import re, sys
from keras_deit.models import DeiTImageClassifier

def peak():
    """Most memory that this process held so far, in bytes. (ru_maxrss would count what its parent held.)"""
    return 1024 * int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1])

DeiTImageClassifier.from_preset("deit_nano_distilled_patch4_32_digits")  # what the backend allocates once
before = peak()
classifier = DeiTImageClassifier.from_preset(sys.argv[1])
print((peak() - before) / (4 * classifier.count_params()))
'''
    result = subprocess.run(
        [sys.executable, "-c", script, str(folder)],
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        check=True,
    )
    assert 1.0 < float(result.stdout.splitlines()[-1]) < 2.5
