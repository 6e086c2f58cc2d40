"""Reading and writing safetensors files."""

import json
import os
import re

import ml_dtypes
import numpy as np

_DTYPES = {
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
    "BOOL": "bool",
}


def write_tensors(file, tensors, metadata=None):
    """Writes {name: NumPy array}.

    Args:
        file: path.
        tensors: {name: NumPy array}.
        metadata: {string: string}, or `None`.

    Raises:
        OSError: if the disk is full or the file cannot be written.
    """
    # Imported here so that `import keras_deit` stays fast.
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    tensors = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    try:
        # `save` would hold the whole file in memory, and again for each of its copies.
        save_file(tensors, file, metadata)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(file)) from error


def read_tensors(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads a safetensors file and returns {name: NumPy array}.

    Raises:
        ValueError: if the file is truncated or not a safetensors file.
    """
    with open(path, "rb") as stream:
        return parse_tensors(stream.read(), path)


def parse_tensors(content, where):
    """{name: NumPy array} of the content of a safetensors file.

    Args:
        content: bytes.
        where: the file in errors.
    """
    from safetensors import SafetensorError, deserialize

    try:
        return {
            name: np.frombuffer(view["data"], _dtype(view["dtype"], name)).reshape(view["shape"])
            for name, view in sorted(deserialize(content), key=lambda tensor: tensor[0])
        }
    except (SafetensorError, ValueError) as error:
        raise ValueError(
            f"{where} is truncated or not a safetensors file: {error}. Copy or download it again."
        ) from error


def parse_metadata(content):
    """{string: string} of the content of a file that `parse_tensors` could read."""
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]).get("__metadata__", {})


def _dtype(name, tensor):
    """The NumPy dtype of a safetensors type. (`safetensors.numpy` reads no bfloat16 from bytes.)"""
    if name == "BF16":
        return ml_dtypes.bfloat16
    if name not in _DTYPES:
        raise ValueError(f"tensor {tensor} has type {name}, which no model has")
    return _DTYPES[name]
