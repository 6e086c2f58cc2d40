"""The upper limit of what the machine can reach."""

import numpy as np

from benchmarks.frameworks import framework
from benchmarks.precision import array_dtype
from benchmarks.subjects.base import Subject, backbone_config, refuse


def ceiling(request):
    """The largest matrix product of the model, alone: (batch * tokens, D) by (D, 4 D)."""
    refuse(request, request.dtype == "int8", "no int8")
    run = framework(request.backend, request.device, request.dtype)
    backbone = backbone_config(request.folder)
    tokens = (backbone["image_shape"][0] // backbone["patch_size"][0]) ** 2
    rows, columns, products = (
        request.batch_size * tokens,
        backbone["hidden_dim"],
        backbone["intermediate_dim"],
    )
    dtype = array_dtype(request.dtype)
    rng = np.random.default_rng(0)
    first = run.place(rng.normal(size=(rows, columns)).astype("float32"), dtype)
    second = run.place(rng.normal(size=(columns, products)).astype("float32"), dtype)
    call = run.compile(run.matmul, request.jit and request.backend == "jax")
    return Subject(
        run, lambda: call(first, second), None, None, flops=2 * rows * columns * products
    )
