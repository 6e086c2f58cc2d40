"""Tensors in safetensors files."""

import hashlib

import numpy as np


def write_tensors(file, tensors):
    """Writes {name: NumPy array} and returns the file's SHA-256.

    Raises:
        OSError: the disk is full, or the file cannot be written.
    """
    # On demand: `import keras_deit` should not pay for it.
    from safetensors.numpy import save

    content = save({name: np.asarray(array, order="C") for name, array in tensors.items()})
    file.write_bytes(content)  # not by `save_file`, whose error for a full disk is no `OSError`
    return hashlib.sha256(content).hexdigest()


def read_tensors(path):
    """{name: NumPy array} of a safetensors file.

    Raises:
        ValueError: not a safetensors file, or one that was cut short.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        # "pread": a mapped file would stay in memory beside its tensors.
        return load_file(path, backend="pread")
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a whole safetensors file: {error}. Copy or download it again."
        ) from error
