"""Exported models in their runtimes, which .ci/run installs with the `export` extra."""

import importlib.util

import keras
import numpy as np
import pytest

from benchmarks import worker
from benchmarks.case import write_case
from benchmarks.subjects import ONLY_BACKEND, SUBJECTS, NotSupportedError, Request
from tests.benchmarks.test_run import run

for runtime in ("nncf", "onnxruntime", "openvino", "tf2onnx", "torch"):
    pytest.importorskip(runtime)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        keras.backend.backend() != "tensorflow",
        reason="each runtime has its backend: once is enough",
    ),
    pytest.mark.filterwarnings("ignore"),  # of the runtimes,
]


# The peers have this one, too.
PRESET, SIZE = "deit_tiny_distilled_patch16_224", {"image_size": 32, "num_layers": 1}


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    folder = tmp_path_factory.mktemp("case")
    write_case(folder, PRESET, **SIZE)
    return folder


def request_for(subject, dtype, folder, mode="inference"):
    return Request(
        subject,
        PRESET,
        mode,
        ONLY_BACKEND[subject],
        dtype,
        True,
        3,
        "cpu",
        *SIZE.values(),
        str(folder),
    )


NEEDS = {
    "timm_openvino": ("timm",),
    "timm_onnxruntime": ("timm", "onnxscript"),
    "keras_hub_openvino": ("keras_hub", "sentencepiece"),
}


# KerasHub's model is no ONNX file: its GELU is TensorFlow's Erfc, which ONNX has not, and from
# PyTorch its tokens are repeated by a shape that is traced as a list. The row says so.
@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize(
    "subject",
    [
        "keras_deit_onnxruntime",
        "keras_deit_openvino",
        pytest.param("timm_onnxruntime", marks=pytest.mark.peer),
        pytest.param("timm_openvino", marks=pytest.mark.peer),
        pytest.param("keras_hub_openvino", marks=pytest.mark.peer),
    ],
)
def test_outputs_equal_keras(subject, dtype, case):
    # Not imported: timm would want torchvision in this process
    for module in NEEDS.get(subject, ()):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    prepared, facts = worker.prepare(request_for(subject, dtype, case))
    assert 0 <= facts["logits_relative_error"] <= {"float32": 1e-5, "int8": 0.1}[dtype]
    assert len(worker.timed(prepared, 2)) == 2
    assert np.isfinite(prepared.step()).all()


def test_missing_exports_are_reported(case):
    for mode, dtype, message in (
        ("training", "float32", "keras_deit_openvino: inference alone"),
        ("inference", "mixed_bfloat16", "keras_deit_openvino: no mixed precision"),
        ("inference", "tf32", "keras_deit_openvino: no tf32"),
    ):
        with pytest.raises(NotSupportedError, match=message):
            SUBJECTS["keras_deit_openvino"](request_for("keras_deit_openvino", dtype, case, mode))


def test_int8_gives_the_same_predictions():
    result = run("agreement", "--ways", "keras_deit_onnxruntime:int8,keras_deit_openvino:int8")
    assert result.returncode == 0, result.stderr
    rows = [
        line.split("|")[1:-1]
        for line in result.stdout.splitlines()
        if line.startswith("| keras_deit_o")
    ]
    assert len(rows) == 2
    for _, _, same, *_ in rows:
        assert float(same.strip().removesuffix("%")) >= 99.5
