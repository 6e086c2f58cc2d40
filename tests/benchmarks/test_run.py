"""The benchmarks as a user runs them, with a model that takes seconds."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import unittest.mock

import keras
import numpy as np
import pytest

from benchmarks import digits, frameworks, measure, results, worker
from benchmarks.case import write_case
from benchmarks.subjects import NotSupportedError, Request
from tests.benchmarks.rows import row
from tests.helpers import tiny_classifier

pytestmark = pytest.mark.backend

ROOT = pathlib.Path(__file__).parent.parent.parent
BACKEND = keras.backend.backend()


def run(module, *arguments):
    return subprocess.run(
        [sys.executable, "-m", f"benchmarks.{module}", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )


@pytest.mark.process
def test_smoke(tmp_path):
    """Measures, skips missing peers, writes table and chart; a second run skips everything."""
    output, markdown, chart = (
        tmp_path / "rows.jsonl",
        tmp_path / "README.md",
        tmp_path / "chart.png",
    )
    arguments = (
        "--smoke",
        "--subject",
        "keras_deit,keras_hub",
        "--mode",
        "attention",
        "--jit",
        "off",
    )
    arguments += ("--backend", BACKEND, "--output", output)
    result = run("run", *arguments)
    assert result.returncode == 0, result.stderr
    rows = {row["subject"]: row for row in results.read(output)}
    ours = rows["keras_deit"]
    assert ours["status"] == "measured"
    assert ours["batch_size"] == 2
    assert ours["n"] >= 1
    assert (
        0
        < ours["step_ms_p10"]
        <= ours["step_ms_median"]
        <= ours["step_ms_p90"]
        <= ours["step_ms_p99"]
    )
    assert (ours["package"], ours["runtime"]) == ("keras_deit", BACKEND)
    assert (ours["precision"], ours["timing"]) == ("float32 (highest)", "in turns")
    assert ours["mfu"] is None  # no vendor's peak of a CPU is known here
    assert ours["images_per_second"] == pytest.approx(2000 / ours["step_ms_median"])
    assert ours["build_seconds"] > 0
    assert ours["logits_relative_error"] < 1e-4
    assert ours["versions"]["keras"] == keras.__version__
    assert rows["keras_hub"]["status"] in ("not installed", "not supported")
    assert rows["ceiling"]["status"] == "measured"

    before = output.read_bytes()
    result = run("run", *arguments)
    assert result.returncode == 0, result.stderr
    assert f"{output} contains it" in result.stdout
    assert output.read_bytes() == before

    markdown.write_text("# Figures\n<!-- results -->\nold\n<!-- end of results -->\nafter\n")
    result = run("report", "--input", output, "--markdown", markdown, "--chart", chart, "--csv")
    assert result.returncode == 0, result.stderr
    text = markdown.read_text()
    assert text.count("| attention | float32 (highest) |") == 1
    assert "[CSV](rows.csv)" in text
    assert "old" not in text
    assert text.endswith("after\n")
    assert chart.read_bytes().startswith(b"\x89PNG")
    assert len(output.with_suffix(".csv").read_text().splitlines()) == 1 + len(rows)


@pytest.mark.process
def test_exclusive(tmp_path):
    """Latency and throughput on the CPU, one process at a time; missing rows are measured alone."""
    output = tmp_path / "rows.jsonl"
    arguments = (
        "--smoke",
        "--exclusive",
        "--jit",
        "off",
        "--backend",
        BACKEND,
        "--dtype",
        "float32,tf32",
    )
    arguments += ("--steps_in_flight", 3, "--note", "the other tests", "--output", output)
    result = run("run", *arguments)
    assert result.returncode == 0, result.stderr
    rows = {(row["subject"], row["dtype"]): row for row in results.read(output)}
    ours = rows["keras_deit", "float32"]
    assert (ours["status"], ours["timing"], ours["note"]) == (
        "measured",
        "exclusive",
        "the other tests",
    )
    assert ours["n"] >= 10  # latency: each step waited for
    assert (ours["throughput_steps"], ours["steps_in_flight"]) == (3, 3)
    assert ours["images_per_second"] == pytest.approx(2000 / ours["throughput_step_ms"])
    assert ours["load_average"] >= 0
    refused = rows["keras_deit", "tf32"]
    assert refused["status"] == "not supported"
    assert refused["message"] == "--dtype tf32 needs --device gpu. Received: --device cpu"

    *kept, _ = output.read_text().splitlines(keepends=True)
    output.write_text("".join(kept))
    result = run("run", *arguments)
    assert result.returncode == 0, result.stderr
    assert output.read_text().startswith("".join(kept))
    assert len(results.read(output)) == len(rows)
    assert result.stdout.count("  ") == 1  # one measurement


@pytest.mark.process
def test_missing_device_is_a_row(tmp_path):
    output = tmp_path / "rows.jsonl"
    result = run(
        "run", "--smoke", "--device", "gpu", "--backend", BACKEND, "--jit", "on", "--output", output
    )
    assert result.returncode == 0, result.stderr
    rows = {row["subject"]: row for row in results.read(output)}
    assert all(row["timing"] == "exclusive" for row in rows.values())
    assert rows["ceiling"]["status"] == "not supported", rows["ceiling"]
    assert "--device gpu: " in rows["ceiling"]["message"]
    assert rows["keras_deit"]["status"] != "measured"


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    folder = tmp_path_factory.mktemp("case")
    write_case(folder, digits.PRESET)
    return folder


# PyTorch's CPU has no kernel for int8.
INT8 = [] if BACKEND == "torch" else [pytest.param("int8", marks=pytest.mark.slow)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", *INT8])
@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method:UserWarning")
def test_inference_is_checked_before_it_is_timed(dtype, case):
    request = Request(
        "keras_deit",
        digits.PRESET,
        "inference",
        BACKEND,
        dtype,
        False,
        3,
        "cpu",
        None,
        None,
        str(case),
    )
    subject, facts = worker.prepare(request)
    assert 0 <= facts["logits_relative_error"] <= worker.TOLERANCES[dtype]
    assert len(worker.timed(subject, 2)) == 2


def test_int8_without_a_kernel_is_refused(case):
    request = Request(
        "keras_deit",
        digits.PRESET,
        "inference",
        "torch",
        "int8",
        False,
        3,
        "cpu",
        None,
        None,
        str(case),
    )
    with pytest.raises(NotSupportedError, match="no kernel on PyTorch's CPU"):
        worker.prepare(request)


def test_wrong_outputs_are_not_timed(case, tmp_path):
    shutil.copytree(case, tmp_path / "case")
    with np.load(case / "case.npz") as content:
        np.savez(
            tmp_path / "case" / "case.npz", images=content["images"], mean=content["mean"][:, ::-1]
        )
    request = Request(
        "keras_deit",
        digits.PRESET,
        "inference",
        BACKEND,
        "float32",
        False,
        3,
        "cpu",
        None,
        None,
        str(tmp_path / "case"),
    )
    with pytest.raises(ValueError, match="The logits differ from the reference by"):
        worker.prepare(request)


def test_too_large_batch_is_halved_and_recorded(monkeypatch, capsys):
    class Small:
        """A machine with memory for batches of three."""

        def __init__(self, request, startup_seconds):
            self.request, self.seconds, self.last = request, [], {}
            self.is_ready = request.batch_size <= 3
            self.facts = (
                {"status": "ready", "flops_of_product": 1000}
                if self.is_ready
                else {"status": "out of memory"}
            )

        def turn(self, steps):
            self.seconds += [0.5] * steps
            self.last = {"peak_host_memory_bytes": 2**20, "peak_device_memory_bytes": None}

        def close(self):
            pass

    monkeypatch.setattr(measure, "Worker", Small)
    request = Request(
        "keras_deit",
        digits.PRESET,
        "inference",
        BACKEND,
        "float32",
        False,
        13,
        "cpu",
        None,
        None,
        "",
    )
    (row,) = measure.measure_in_turns(
        [request], {"date": "2026-11-22"}, rounds=2, seconds_per_turn=1.0
    )
    assert (row["requested_batch_size"], row["batch_size"], row["status"]) == (13, 3, "measured")
    assert row["n"] == 4
    assert row["images_per_second"] == 6.0


def test_model_that_never_fits_is_a_row(monkeypatch, capsys):
    class Full:
        def __init__(self, request, startup_seconds):
            self.request, self.seconds, self.last, self.is_ready = request, [], {}, False
            self.facts = {"status": "out of memory", "message": "MemoryError: 1 GiB"}

        def close(self):
            pass

    monkeypatch.setattr(measure, "Worker", Full)
    request = Request(
        "keras_deit",
        digits.PRESET,
        "inference",
        BACKEND,
        "float32",
        False,
        4,
        "cpu",
        None,
        None,
        "",
    )
    (row,) = measure.measure_in_turns([request], {}, rounds=2, seconds_per_turn=1.0)
    assert (row["requested_batch_size"], row["batch_size"]) == (4, 1)
    assert (row["status"], row["message"]) == ("out of memory", "MemoryError: 1 GiB")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_training_changes_the_weights(dtype, case):
    request = Request(
        "keras_deit",
        digits.PRESET,
        "training",
        BACKEND,
        dtype,
        False,
        3,
        "cpu",
        None,
        None,
        str(case),
    )
    subject, facts = worker.prepare(request)
    assert facts["logits_relative_error"] is None
    losses = [float(subject.step()) for _ in range(3)]
    assert np.isfinite(losses).all()
    assert len(set(losses)) == 3


@pytest.mark.process
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--mode", "speed"),
            "--mode must list one or more of inference, training, attention. Received: speed",
        ),
        (
            ("--backend", "mxnet"),
            "--backend must list one or more of tensorflow, jax, torch. Received: mxnet",
        ),
        (
            ("--batch_size", "0"),
            "--batch_size must be a list of positive integers, such as 1,8,32. Received: 0",
        ),
        (
            ("--image_size", "224,x"),
            "--image_size must be a list of positive integers, such as 224,384. Received: 224,x",
        ),
        (
            ("--device", "tpu", "--backend", "torch"),
            "--device tpu needs --backend jax. Received: torch",
        ),
        (
            ("--device", "gpu", "--noexclusive"),
            "--device gpu allows one process at a time. Leave --noexclusive out.",
        ),
        (
            ("--subject", "timm", "--backend", "jax"),
            "--subject timm needs --backend torch. Received: jax",
        ),
        (
            ("--preset", "resnet50"),
            "resnet50 cannot be measured. ValueError: A preset handle is a built-in name, ",
        ),
    ],
)
def test_wrong_flags(arguments, message, tmp_path):
    result = run("run", "--backend", BACKEND, *arguments, "--output", tmp_path / "rows.jsonl")
    assert result.returncode == 1
    assert message in result.stdout + result.stderr
    assert not (tmp_path / "rows.jsonl").exists()


@pytest.mark.process
def test_file_of_another_version_is_kept(tmp_path):
    output = tmp_path / "rows.jsonl"
    output.write_text(json.dumps({"format": 0}) + "\n")
    result = run("run", "--smoke", "--backend", BACKEND, "--output", output)
    assert result.returncode == 1
    message = f"{output}, line 1: Expected a row of format 3. Use another file. Received: 0"
    assert message in result.stderr
    assert output.read_text() == json.dumps({"format": 0}) + "\n"


def test_later_row_of_a_measurement_counts(tmp_path):
    results.append(
        tmp_path / "rows.jsonl", [row("keras_deit", "jax", 1.0), row("timm", "torch", 2.0)]
    )
    results.append(tmp_path / "rows.jsonl", [row("keras_deit", "jax", 3.0)])
    assert [content["images_per_second"] for content in results.read(tmp_path / "rows.jsonl")] == [
        2.0,
        3.0,
    ]


def test_error_on_rows_of_another_machine(tmp_path):
    output = tmp_path / "rows.jsonl"
    here = row("keras_deit", "jax", 1.0)
    results.append(output, [here])
    assert results.of_machine(output, "a machine") == [here]
    message = f"--output {output} contains rows of another machine, a machine; this is another. Use"
    with pytest.raises(ValueError, match=re.escape(message)):
        results.of_machine(output, "another")


def test_retry():
    rows = [row("keras_deit", "jax", 1.0), row("timm", "torch", 0.0, status="failed")]
    rows.append(row("keras_hub", "jax", 0.0, status="not supported"))
    keys = [results.key(content) for content in rows]
    assert results.done(rows) == set(keys)
    assert results.done(rows, retry=True) == {keys[0], keys[2]}


def test_warning_of_short_memory(capsys, monkeypatch):
    workers = [
        unittest.mock.Mock(last={"peak_host_memory_bytes": 3 * 2**30}),
        unittest.mock.Mock(last={}),
    ]
    monkeypatch.setattr(measure, "memory_bytes", lambda: 4 * 2**30)
    measure.warn_of_short_memory(workers)
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(measure, "memory_bytes", lambda: 3 * 2**30)
    measure.warn_of_short_memory(workers)
    assert "The 2 processes have held 3.0 GiB and the machine has 3.0" in capsys.readouterr().out


@pytest.mark.skipif(BACKEND != "torch", reason="of PyTorch's graphs")
def test_a_compiled_training_step_has_the_gradients_of_the_model(monkeypatch):
    import torch

    monkeypatch.setattr(torch, "compile", lambda module: module)  # the exported graph as it is
    model = tiny_classifier()
    images = torch.randn((2, *model.input.shape[1:]))
    run = frameworks.framework("torch", "cpu")
    gradients = []
    for jit in (True, False):
        model.zero_grad(set_to_none=True)
        run.keras_training(model, jit, images)(images).square().sum().backward()
        gradients.append([variable.value.grad for variable in model.trainable_variables])
    for compiled, eager in zip(*gradients):
        torch.testing.assert_close(compiled, eager)
