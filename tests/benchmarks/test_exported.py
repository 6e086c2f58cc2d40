"""The exported model in its own runtimes. They come with the `export` extra, and .ci/run brings them."""

import keras
import numpy as np
import pytest

from benchmarks import digits, worker
from benchmarks.case import write_case
from benchmarks.subjects import ONLY_BACKEND, SUBJECTS, NotSupportedError, Request
from tests.benchmarks.test_run import run

for runtime in ("nncf", "onnxruntime", "openvino", "tf2onnx", "torch"):
    pytest.importorskip(runtime)
pytestmark = [
    pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="each runtime has its backend: once is enough"),
    pytest.mark.filterwarnings("ignore"),  # of the runtimes
]


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    folder = tmp_path_factory.mktemp("case")
    write_case(folder, digits.PRESET)
    return folder


def request_for(subject, dtype, folder, mode="inference"):
    return Request(subject, digits.PRESET, mode, ONLY_BACKEND[subject], dtype, True, 3, "cpu", None, None, str(folder))


@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize("subject", ["onnxruntime", "openvino"])
def test_answers_are_those_of_keras(subject, dtype, case):
    prepared, facts = worker.prepare(request_for(subject, dtype, case))
    assert 0 <= facts["logits_relative_error"] <= {"float32": 1e-5, "int8": 0.1}[dtype]
    assert len(worker.timed(prepared, 2)) == 2
    assert np.isfinite(prepared.step()).all()


def test_what_an_export_lacks_is_said(case):
    for mode, dtype, message in (
        ("training", "float32", "openvino: inference alone"),
        ("inference", "mixed_bfloat16", "openvino: no mixed precision"),
    ):
        with pytest.raises(NotSupportedError, match=message):
            SUBJECTS["openvino"](request_for("openvino", dtype, case, mode))


def test_int8_gives_the_same_predictions():
    result = run("agreement", "--ways", "onnxruntime:int8,openvino:int8")
    assert result.returncode == 0, result.stderr
    rows = [line.split("|")[1:-1] for line in result.stdout.splitlines() if line.startswith("| o")]
    assert len(rows) == 2
    for _, _, same, *_ in rows:
        assert float(same.strip().removesuffix("%")) >= 99.5
