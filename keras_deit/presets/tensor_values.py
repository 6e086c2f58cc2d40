"""What the numbers of a weights file may be."""

import numpy as np

from keras_deit.presets.words import listed


def is_float(dtype):
    return np.issubdtype(dtype, np.floating) or dtype.name == "bfloat16"


def refuse_non_finite(tensors, where):
    """Raises a ValueError if a float tensor has NaN or infinity.

    Args:
        tensors: {name: NumPy array}.
        where: what has the tensors, for the error.
    """
    wrong = [
        f"{name} has {np.count_nonzero(~np.isfinite(array)):,} of {array.size:,}"
        for name, array in tensors.items()
        if is_float(array.dtype) and not np.isfinite(array).all()
    ]
    if wrong:
        raise ValueError(
            f"The weights of {where} have values that are NaN or infinite, so training has "
            f"diverged or the file is damaged. Use weights from before: {listed(wrong)}"
        )


def refuse_non_floats(tensors, where):
    """Raises a ValueError if a tensor has anything but floats."""
    wrong = [
        f"{name} has {array.dtype.name}"
        for name, array in tensors.items()
        if not is_float(array.dtype)
    ]
    if wrong:
        raise ValueError(
            f"The tensors of {where} must be float16, bfloat16, float32 or float64. Save the "
            f"checkpoint before it is quantized. Received: {listed(wrong)}"
        )
