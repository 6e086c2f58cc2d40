"""The benchmarks as a user runs them, on a model that takes seconds."""

import json
import os
import pathlib
import subprocess
import sys

import keras
import pytest

from benchmarks import report, results

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


def test_smoke(tmp_path):
    """Every mode of ours, a peer that is not there or cannot, the tables and the chart; and a second run that finds all done."""
    output, markdown, chart = tmp_path / "rows.jsonl", tmp_path / "README.md", tmp_path / "chart.png"
    arguments = ("--smoke", "--subject", "keras_deit,keras_hub", "--mode", "training,attention", "--jit", "off")
    arguments += ("--backend", BACKEND, "--output", output)
    result = run("run", *arguments)
    assert result.returncode == 0, result.stderr
    rows = results.read(output)
    ours = {row["mode"]: row for row in rows if row["subject"] == "keras_deit"}
    assert {mode: row["status"] for mode, row in ours.items()} == dict.fromkeys(ours, "measured")
    assert set(ours) == {"training", "attention"}
    for row in ours.values():
        assert row["batch_size"] == 2
        assert row["n"] >= 1
        assert 0 < row["step_ms_p10"] <= row["step_ms_median"] <= row["step_ms_p90"]
        assert row["images_per_second"] == pytest.approx(2000 / row["step_ms_median"])
        assert row["build_seconds"] > 0
        assert row["versions"]["keras"] == keras.__version__
    assert ours["attention"]["logits_relative_error"] < 1e-4
    assert ours["training"]["gflop_per_second"] > 0
    assert {row["status"] for row in rows if row["subject"] == "keras_hub"} <= {"not installed", "not supported"}
    assert {row["status"] for row in rows if row["subject"] == "ceiling"} == {"measured"}

    before = output.read_bytes()
    result = run("run", *arguments)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count(f"is in {output} already") == 2
    assert output.read_bytes() == before

    markdown.write_text(f"# Figures\n{report.START}old\n{report.END}after\n")
    result = run("report", "--input", output, "--markdown", markdown, "--chart", chart)
    assert result.returncode == 0, result.stderr
    text = markdown.read_text()
    assert text.count("| keras_deit |") == 2
    assert "### training, float32, cpu" in text
    assert "old" not in text
    assert text.endswith("after\n")
    assert chart.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--mode", "speed"), "--mode must be of inference, training, attention. Received: speed"),
        (("--backend", "mxnet"), "--backend must be of tensorflow, jax, torch. Received: mxnet"),
        (("--batch_size", "0"), "--batch_size must be positive integers, such as 1,8,32. Received: 0"),
        (("--subject", "timm", "--backend", "jax"), "timm and transformers run on PyTorch alone: add torch to --backend."),
        (("--preset", "resnet50"), "resnet50 cannot be measured. ValueError: A preset handle is a built-in name, "),
    ],
)
def test_wrong_flags(arguments, message, tmp_path):
    result = run("run", "--backend", BACKEND, *arguments, "--output", tmp_path / "rows.jsonl")
    assert result.returncode == 1
    assert message in result.stdout + result.stderr
    assert not (tmp_path / "rows.jsonl").exists()


def test_a_file_that_another_version_wrote_stays_as_it_is(tmp_path):
    output = tmp_path / "rows.jsonl"
    output.write_text(json.dumps({"format": 0}) + "\n")
    result = run("run", "--smoke", "--backend", BACKEND, "--output", output)
    assert result.returncode == 1
    message = f"{output}, line 1, is of format 0; this version reads and writes format 1. Give another --output."
    assert message in result.stderr
    assert output.read_text() == json.dumps({"format": 0}) + "\n"


def row(subject, backend, speed, jit=True, **changes):
    content = {
        "format": 1,
        "subject": subject,
        "backend": backend,
        "jit": jit,
        "preset": "deit_tiny_patch16_224",
        "mode": "inference",
        "dtype": "float32",
        "device": "cpu",
        "image_size": None,
        "batch_size": 8,
        "requested_batch_size": 8,
        "status": "measured",
        "n": 9,
        "images_per_second": speed,
        "gflop_per_second": 2.5 * speed,
        "step_ms_median": 8000 / speed,
        "step_ms_p10": 8000 / speed,
        "step_ms_p90": 8000 / speed,
        "peak_host_memory_mib": 100.0,
        "peak_device_memory_mib": None,
        "date": "2026-11-22",
        "machine": "a machine",
        "versions": {"keras": "3.15.1"},
    }
    return {**content, **changes}


def test_the_table_shows_each_subjects_best_and_says_what_it_lost():
    rows = [
        row("keras_deit", "tensorflow", 40.0, jit=True),
        row("keras_deit", "tensorflow", 20.0, jit=False),
        row("keras_hub", "tensorflow", 50.0),
        row("timm", "torch", 1.0, status="not installed", message="No module named 'timm'"),
        row("ceiling", "torch", 80.0),
    ]
    lines = [line for line in report.tables(rows).splitlines() if line.startswith("| `")]
    assert lines == [
        "| `deit_tiny_patch16_224` | 8 | keras_hub | tensorflow | yes | 50.0 | 160.0 (160.0 to 160.0, 9) | 0.62 |  | 100 |",
        "| `deit_tiny_patch16_224` | 8 | keras_deit | tensorflow | yes | 40.0 | 200.0 (200.0 to 200.0, 9) | 0.50 | 0.80 | 100 |",
        "| `deit_tiny_patch16_224` | 8 | timm | torch | | not installed: No module named 'timm' | | | | |",
    ]


def test_of_a_measurement_taken_twice_the_later_counts(tmp_path):
    results.append(tmp_path / "rows.jsonl", [row("keras_deit", "jax", 1.0), row("timm", "torch", 2.0)])
    results.append(tmp_path / "rows.jsonl", [row("keras_deit", "jax", 3.0)])
    assert [content["images_per_second"] for content in results.read(tmp_path / "rows.jsonl")] == [2.0, 3.0]
