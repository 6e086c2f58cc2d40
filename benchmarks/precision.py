"""What a dtype option means: the dtype of the model, and the precision in its row.

`tf32` is float32 with factors rounded to TF32, on NVIDIA GPUs. `float32` asks for full precision on
every device. Otherwise a TPU would use bfloat16 passes, and TensorFlow, JAX and cuDNN would use
TF32 on a recent GPU.
"""

DTYPES = ("float32", "tf32", "mixed_bfloat16", "mixed_float16", "bfloat16", "int8")


def keras_dtype(dtype):
    """The Keras dtype policy of a dtype option."""
    return "float32" if dtype == "tf32" else dtype


def array_dtype(dtype):
    """The dtype of the factors of products."""
    return "float32" if dtype == "int8" else keras_dtype(dtype).removeprefix("mixed_")


def precision(dtype):
    """The precision as a row names it."""
    return "float32 (highest)" if dtype == "float32" else dtype
