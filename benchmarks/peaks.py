"""Peak speeds by vendor, for MFU: the share of the peak that a model's matrix products reach.

The numbers are dense, without structured sparsity, for one device as JAX and PyTorch count them.

Sources: NVIDIA A100 Tensor Core GPU data sheet; NVIDIA H100 data sheet for H100 SXM (it lists twice
the dense numbers, with sparsity); NVIDIA H200 data sheet for H200 SXM, which has the same compute;
docs.cloud.google.com/tpu/docs, "System architecture" of v4, v5e, v5p and v6e, per chip.
"""

import re

_HOPPER = {"bfloat16": 989.0, "float16": 989.0, "tf32": 494.5, "float32": 67.0}
# Names of `jax.Device.device_kind` and `torch.cuda.get_device_name`. Variants with other clocks
# (PCIe, NVL) are left out, because their peaks differ.
_TERAFLOPS = {
    r"NVIDIA A100-.*": {"bfloat16": 312.0, "float16": 312.0, "tf32": 156.0, "float32": 19.5},
    r"NVIDIA H100 80GB HBM3": _HOPPER,
    r"NVIDIA H200": _HOPPER,
    r"TPU v4": {"bfloat16": 275.0},
    r"TPU v5 ?(lite|e)": {"bfloat16": 197.0},
    r"TPU v5p?": {"bfloat16": 459.0},
    r"TPU v6 ?(lite|e)": {"bfloat16": 918.0},
}


def peak_teraflops(device_name, dtype):
    """The vendor's TFLOP/s for products of this dtype option, or `None` if unknown."""
    for pattern, peaks in _TERAFLOPS.items():
        if device_name is not None and re.fullmatch(pattern, device_name):
            return peaks.get(dtype.removeprefix("mixed_"))
    return None


def mfu(flops, seconds, device_name, dtype):
    """Model FLOPs utilization, or `None` if the peak is unknown."""
    peak = peak_teraflops(device_name, dtype)
    return None if peak is None else flops / seconds / (peak * 1e12)
