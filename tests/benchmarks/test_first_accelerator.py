"""The program for a borrowed accelerator, run on the CPU."""

import json
import os
import pathlib
import subprocess
import sys
import unittest.mock

import keras
import pytest

from benchmarks import first_accelerator, results
from benchmarks.first_accelerator import PLAN, Clock, measure_all, requests
from tests.benchmarks.rows import row

pytestmark = pytest.mark.backend

ROOT = pathlib.Path(__file__).parent.parent.parent
BACKEND = keras.backend.backend()


def listed(plan, names, device="gpu"):
    return list(requests(plan, device, names, pathlib.Path("cases"), {}))


def test_order_of_the_plan():
    found = listed(PLAN, ["jax", "torch"])
    assert len(set(found)) == len(found)
    first = [(request.subject, request.backend) for request in found[:5]]
    assert first == [
        ("keras_deit", "jax"),
        ("keras_deit", "torch"),
        ("timm", "torch"),
        ("keras_hub", "jax"),
        ("ceiling", "jax"),
    ]
    assert {(request.preset, request.dtype, request.batch_size) for request in found[:5]} == {
        ("deit_small_distilled_patch16_224", "bfloat16", 128)
    }
    assert (found[-1].subject, found[-1].backend) == ("keras_hub", "torch")
    asked = {
        (r.preset, r.batch_size) for r in found if r.mode == "inference" and r.dtype == "bfloat16"
    }
    for preset in (first_accelerator.SMALL, first_accelerator.BASE):
        assert asked >= {(preset, size) for size in (1, 8, 128, 512)}


def test_backends_are_those_installed():
    with unittest.mock.patch.object(
        first_accelerator, "_is_installed", lambda name: name != "tensorflow"
    ):
        assert first_accelerator.backends("gpu", []) == ["jax", "torch"]
    assert first_accelerator.backends("gpu", ["torch"]) == ["torch"]
    assert first_accelerator.backends("tpu", ["torch"]) == ["jax"]
    assert {request.subject for request in listed(PLAN, ["jax"])} == {
        "keras_deit",
        "keras_hub",
        "ceiling",
    }


@pytest.fixture
def measured(monkeypatch):
    """Replaces measuring: a list of what was measured, and a clock that adds a minute per row."""
    found, now = [], [0.0]
    monkeypatch.setattr(first_accelerator.time, "monotonic", lambda: now[0])

    def measure(request, common, seconds, startup_seconds):
        now[0] += 60.0
        found.append(request)
        status = "failed" if request.subject == "timm" and request.jit else "measured"
        return row(
            request.subject, request.backend, 9.0, request.jit, request.dtype, status=status
        ) | {
            "preset": request.preset,
            "mode": request.mode,
            "requested_batch_size": request.batch_size,
            "device": request.device,
            **common,
        }

    monkeypatch.setattr(first_accelerator, "measure_alone", measure)
    return found


COMMON = {"machine": "a machine", "timing": "exclusive"}


def test_it_stops_in_time_and_resumes(measured, tmp_path):
    file, plan = tmp_path / "rows.jsonl", listed(PLAN[:2], ["jax"])
    assert len(plan) == 5
    left = measure_all(plan, file, COMMON, Clock(3.5), 20.0, lambda request: None)
    assert measured == plan[:3]
    assert left == plan[3:]
    left = measure_all(plan, file, COMMON, Clock(25), 20.0, lambda request: None)
    assert measured == plan
    assert left == []
    assert len(results.read(file)) == 5


def test_without_compilation_if_that_fails(measured, tmp_path):
    plan = [request for request in listed(PLAN[:1], ["torch"]) if request.subject == "timm"]
    measure_all(plan, tmp_path / "rows.jsonl", COMMON, Clock(25), 20.0, lambda request: None)
    assert [request.jit for request in measured] == [True, False]
    assert [content["status"] for content in results.read(tmp_path / "rows.jsonl")] == [
        "failed",
        "measured",
    ]


def test_interruption_by_the_clock_is_no_failure(measured, tmp_path):
    plan = [request for request in listed(PLAN[:1], ["torch"]) if request.subject == "timm"]
    left = measure_all(
        plan, tmp_path / "rows.jsonl", COMMON, Clock(0.9), 20.0, lambda request: None
    )
    assert left == plan
    assert results.read(tmp_path / "rows.jsonl") == []


@pytest.mark.process
@pytest.mark.skipif(
    BACKEND == "tensorflow", reason="an accelerator's machine, with JAX or PyTorch alone"
)
def test_without_tensorflow(tmp_path):
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / "tensorflow.py").write_text(
        "raise ImportError('TensorFlow is not here')"
    )
    folder = tmp_path / "out"
    command = [sys.executable, "-m", "benchmarks.first_accelerator", "--device", "cpu", "--tiny"]
    command += ["--backend", BACKEND, "--output", str(folder), "--minutes", "20"]
    variables = {**os.environ, "PYTHONPATH": f"{tmp_path / 'without'}{os.pathsep}{ROOT}"}
    done = subprocess.run(
        command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    numbers = results.read(folder / "numbers.jsonl")
    assert {content["precision"]: content["status"] for content in numbers} == {
        "float32 (highest)": "measured",
        "bfloat16": "measured",
    }
    rows = {
        (content["subject"], content["mode"]): content
        for content in results.read(folder / "rows.jsonl")
    }
    for name in (("keras_deit", "inference"), ("keras_deit", "training"), ("ceiling", "inference")):
        assert rows[name]["status"] == "measured", rows[name]
        assert rows[name]["timing"] == "exclusive"
    for name in ("timm", "keras_hub"):
        peer = rows.get((name, "inference"), {"status": "not installed"})
        assert peer["status"] in ("measured", "not installed"), peer
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["left"] == []
    assert {found["mode"] for found in summary["headlines"]} == {"inference", "training"}

    before = (folder / "rows.jsonl").read_bytes()
    done = subprocess.run(
        command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (folder / "rows.jsonl").read_bytes() == before
