"""The machine and the software that a measurement depends on."""

import importlib.metadata
import os
import pathlib
import platform
import re
import subprocess
import time

PACKAGES = (
    "keras",
    "tensorflow",
    "jax",
    "jaxlib",
    "torch",
    "numpy",
    "keras-hub",
    "keras-cv",
    "timm",
    "transformers",
    "onnxruntime",
    "openvino",
    "nncf",
)


# The first is the default. Keras also needs the CPU, to read arrays there.
JAX_PLATFORMS = {"cpu": "cpu", "gpu": "cuda,cpu", "tpu": "tpu,cpu"}
# Names of `nvidia-smi --help-query-gpu`, and of the row
GPU_QUERY = {
    "name": "name",
    "driver_version": "driver_version",
    "clocks.sm": "sm_clock_mhz",
    "clocks.max.sm": "max_sm_clock_mhz",
    "power.limit": "power_limit_watts",
    "memory.total": "memory_mib",
}


def environment(note=None):
    """What all rows of a run have in common.

    Args:
        note: str, what else runs on the machine.
    """
    return {
        "note": note,
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{_cpu()}, {os.cpu_count()} cores{_instructions()}",
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
        "flags": {
            name: os.environ[name]
            for name in (
                "XLA_FLAGS",
                "LIBTPU_INIT_ARGS",
                "TF_XLA_FLAGS",
                "OMP_NUM_THREADS",
                "TORCHINDUCTOR_FREEZING",
            )
            if name in os.environ
        },
    }


def worker_environment(backend, device="cpu"):
    """Environment variables of a process that runs one backend on one device.

    By default JAX and TensorFlow reserve most of a GPU's memory, which would hide how much a
    subject needs.
    """
    return {
        **os.environ,
        "KERAS_BACKEND": backend,
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "JAX_PLATFORMS": JAX_PLATFORMS[device],
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",
        **({} if device == "gpu" else {"CUDA_VISIBLE_DEVICES": ""}),
    }


def gpu():
    """Name, driver and clocks of the first visible NVIDIA GPU, or `None` without `nvidia-smi`.

    The SM clock is the current one, so call it while the GPU computes.
    """
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0] or "0"
    command = ["nvidia-smi", f"--id={first}", f"--query-gpu={','.join(GPU_QUERY)}"]
    try:
        found = subprocess.run(
            [*command, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    values = [value.strip() for value in found.stdout.strip().split(",")]
    if len(values) != len(GPU_QUERY):
        return None
    return {name: _number(value) for name, value in zip(GPU_QUERY.values(), values)}


def _number(text):
    """A number, or `None` for values such as `[N/A]`. Names and versions stay text."""
    if text.startswith("["):
        return None
    return float(text) if re.fullmatch(r"\d+(\.\d+)?", text) else text


def load_average():
    """Number of processes that wanted a core over the last minute, or `None` if unknown."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def peak_memory_bytes():
    """Peak memory of this process, or `None` if unknown."""
    status = pathlib.Path("/proc/self/status")
    if not status.exists():
        return None
    return 1024 * int(re.search(r"VmHWM:\s*(\d+) kB", status.read_text())[1])


def memory_bytes():
    """Memory of the machine, or `None` if unknown."""
    return (
        os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None
    )


def _version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu():
    info = pathlib.Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


def _instructions():
    """CPU instructions that decide the speed of half precision and int8."""
    info = pathlib.Path("/proc/cpuinfo")
    flags = set(info.read_text().split()) if info.exists() else set()
    return "".join(
        f", {name}"
        for name in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16")
        if name in flags
    )
