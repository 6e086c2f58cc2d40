"""Reading and writing safetensors files."""

import hashlib
import os

import numpy as np


def write_tensors(file, tensors):
    """Writes {name: NumPy array} and returns the file's SHA-256.

    Raises:
        OSError: if the disk is full or the file cannot be written.
    """
    # Imported here so that `import keras_deit` stays fast.
    from safetensors.numpy import save

    content = save({name: np.asarray(array, order="C") for name, array in tensors.items()})
    file.write_bytes(content)  # `save_file` raises no OSError when the disk is full
    return hashlib.sha256(content).hexdigest()


def read_tensors(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads a safetensors file and returns {name: NumPy array}.

    Raises:
        ValueError: if the file is truncated or not a safetensors file.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        # "pread" copies: a memory-mapped file would stay in memory beside its tensors.
        return load_file(path, backend="pread")
    except SafetensorError as error:
        raise ValueError(
            f"{path} is truncated or not a safetensors file: {error}. Copy or download it again."
        ) from error
