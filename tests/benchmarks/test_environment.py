"""What rows record about devices, tested without the devices."""

import os

import keras
import pytest

from benchmarks import environment, errors, frameworks, peaks, precision

pytestmark = pytest.mark.backend

NVIDIA_SMI = """#!/bin/sh
case "$*" in *--id=2*clocks.sm*) echo "NVIDIA H100 80GB HBM3, 580.95.05, 1755, 1980, 700.00, 81559" ;; *) exit 6 ;; esac
"""


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    file = tmp_path / "nvidia-smi"
    file.write_text(NVIDIA_SMI)
    file.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    return file


def test_gpu(nvidia_smi, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert environment.gpu() == {
        "name": "NVIDIA H100 80GB HBM3",
        "driver_version": "580.95.05",
        "sm_clock_mhz": 1755.0,
        "max_sm_clock_mhz": 1980.0,
        "power_limit_watts": 700.0,
        "memory_mib": 81559.0,
    }


def test_gpu_without_values(nvidia_smi, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    nvidia_smi.write_text(NVIDIA_SMI.replace("700.00", "[N/A]"))
    assert environment.gpu()["power_limit_watts"] is None
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")  # it fails
    assert environment.gpu() is None
    nvidia_smi.write_text("#!/bin/sh\necho No devices were found\n")
    assert environment.gpu() is None
    monkeypatch.setenv("PATH", "")
    assert environment.gpu() is None


def test_a_process_takes_no_more_memory_than_it_needs_and_only_its_device():
    for device, platforms in (("cpu", "cpu"), ("gpu", "cuda,cpu"), ("tpu", "tpu,cpu")):
        variables = environment.worker_environment("jax", device)
        assert variables["KERAS_BACKEND"] == "jax"
        assert variables["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false"
        assert variables["TF_FORCE_GPU_ALLOW_GROWTH"] == "true"
        assert variables["JAX_PLATFORMS"] == platforms
    assert environment.worker_environment("torch", "cpu")["CUDA_VISIBLE_DEVICES"] == ""


@pytest.mark.parametrize(
    ("name", "dtype", "expected"),
    [
        ("NVIDIA A100-SXM4-40GB", "mixed_bfloat16", 312.0),
        ("NVIDIA H100 80GB HBM3", "tf32", 494.5),
        ("NVIDIA H200", "bfloat16", 989.0),
        ("TPU v5 lite", "bfloat16", 197.0),
        ("TPU v5p", "bfloat16", 459.0),
        ("TPU v6 lite", "bfloat16", 918.0),
        ("TPU v4", "float32", None),  # six passes of bfloat16: no vendor's figure
        ("NVIDIA H100 PCIe", "bfloat16", None),
        ("NVIDIA H200 NVL", "bfloat16", None),
        ("NVIDIA H100 80GB HBM3", "int8", None),
        (None, "bfloat16", None),
    ],
)
def test_peaks(name, dtype, expected):
    assert peaks.peak_teraflops(name, dtype) == expected
    share = peaks.mfu(31.2e12, 0.2, name, dtype)
    assert share == (expected and pytest.approx(156 / expected))


def test_precision_is_named():
    names = [precision.precision(dtype) for dtype in precision.DTYPES]
    assert names == [
        "float32 (highest)",
        "tf32",
        "mixed_bfloat16",
        "mixed_float16",
        "bfloat16",
        "int8",
    ]
    assert precision.keras_dtype("tf32") == "float32"
    assert precision.array_dtype("mixed_bfloat16") == "bfloat16"


def test_float32_is_float32_and_tf32_is_set(monkeypatch):
    """Otherwise TPUs would use bfloat16 passes and recent GPUs TF32."""
    import importlib

    name = keras.backend.backend()
    module = importlib.import_module(name)
    if name == "jax":
        before = module.config.jax_default_matmul_precision
        frameworks.Jax(module, "cpu", "tf32")
        assert module.config.jax_default_matmul_precision == "tensorfloat32"
        frameworks.Jax(module, "cpu", "float32")
        assert module.config.jax_default_matmul_precision == "highest"
        module.config.update("jax_default_matmul_precision", before)
    elif name == "torch":
        frameworks.Torch(module, "cpu", "tf32")
        assert module.get_float32_matmul_precision() == "high"
        assert module.backends.cudnn.allow_tf32
        frameworks.Torch(module, "cpu", "float32")
        assert module.get_float32_matmul_precision() == "highest"
        assert not module.backends.cudnn.allow_tf32
    else:
        enabled = module.config.experimental.tensor_float_32_execution_enabled
        frameworks.TensorFlow(module, "cpu", "tf32")
        assert enabled()
        frameworks.TensorFlow(module, "cpu", "float32")
        assert not enabled()


def test_last_error():
    log = "Traceback\nValueError: the kernel\n\nArguments received by call():\n  - images\n"
    assert errors.last_error(log) == "ValueError: the kernel"
    assert errors.last_error("Killed\n") == "Killed"
    assert errors.last_error("") == ""
