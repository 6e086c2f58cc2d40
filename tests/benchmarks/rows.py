"""Made-up rows of results."""

from benchmarks.precision import precision
from benchmarks.subjects import package_of, runtime_of


def row(subject, backend, speed, jit=True, dtype="float32", **changes):
    content = {
        "format": 3,
        "subject": subject,
        "package": package_of(subject),
        "runtime": runtime_of(subject, backend),
        "backend": backend,
        "jit": jit,
        "preset": "deit_tiny_patch16_224",
        "mode": "inference",
        "dtype": dtype,
        "precision": precision(dtype),
        "device": "cpu",
        "device_name": None,
        "timing": "in turns",
        "image_size": None,
        "num_layers": None,
        "build_seconds": 3.25,
        "first_call_seconds": 0.5,
        "logits_relative_error": 1e-6,
        "batch_size": 8,
        "requested_batch_size": 8,
        "status": "measured",
        "n": 9,
        "images_per_second": speed,
        "gflop_per_second": 2.5 * speed,
        "step_ms_median": 8000 / speed if speed else None,
        "step_ms_p10": 190.0,
        "step_ms_p90": 210.0,
        "step_ms_p99": 220.0,
        "mfu": None,
        "peak_host_memory_mib": 100.0,
        "peak_device_memory_mib": None,
        "date": "2026-11-22",
        "machine": "a machine",
        "note": None,
        "versions": {"keras": "3.15.1"},
    }
    return {**content, **changes}
