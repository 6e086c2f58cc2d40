"""What a dtype option means: the dtype a model is built with, and the precision its row names.

`tf32` is float32 whose matrix products round their factors to TF32, on NVIDIA GPUs. `float32` asks
for full float32 products on every device: a TPU would take bfloat16 passes otherwise, and
TensorFlow, JAX and cuDNN would take TF32 on a recent GPU.
"""

DTYPES = ("float32", "tf32", "mixed_bfloat16", "mixed_float16", "bfloat16", "int8")


def keras_dtype(dtype):
    """The Keras dtype policy of a dtype option."""
    return "float32" if dtype == "tf32" else dtype


def array_dtype(dtype):
    """What the products' factors are stored in."""
    return "float32" if dtype == "int8" else keras_dtype(dtype).removeprefix("mixed_")


def precision(dtype):
    """As a row names it."""
    return "float32 (highest)" if dtype == "float32" else dtype
