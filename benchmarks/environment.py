"""What a figure depends on beside the code."""

import importlib.metadata
import os
import pathlib
import platform
import re
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


def environment():
    """What is the same for every row of a run."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{_cpu()}, {os.cpu_count()} cores{_instructions()}",
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
        "flags": {
            name: os.environ[name]
            for name in ("XLA_FLAGS", "TF_XLA_FLAGS", "OMP_NUM_THREADS", "TORCHINDUCTOR_FREEZING")
            if name in os.environ
        },
    }


def peak_memory_bytes():
    """The most memory that this process has held, or `None` where the system does not say."""
    status = pathlib.Path("/proc/self/status")
    if not status.exists():
        return None
    return 1024 * int(re.search(r"VmHWM:\s*(\d+) kB", status.read_text())[1])


def memory_bytes():
    """The machine's memory, or `None` where the system does not say."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None


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
    """What decides the speed of half precision and int8 on a CPU."""
    info = pathlib.Path("/proc/cpuinfo")
    flags = set(info.read_text().split()) if info.exists() else set()
    return "".join(f", {name}" for name in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16") if name in flags)
