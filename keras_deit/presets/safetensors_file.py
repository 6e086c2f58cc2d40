"""Tensors as bytes in the safetensors format, and back. What is read is the bytes that were checked: no file is opened twice."""

import hashlib
import operator
import pathlib

import numpy as np


def write_tensors(file, tensors):
    """Writes {name: NumPy array} and returns the file's SHA-256.

    Raises:
        OSError: the disk is full, or the file cannot be written.
    """
    # On demand: `import keras_deit` should not pay for it.
    from safetensors.numpy import save

    content = save({name: np.asarray(array, order="C") for name, array in tensors.items()})
    file.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def read_tensors(path):
    """{name: NumPy array} of a safetensors file.

    Raises:
        ValueError: not a safetensors file, one that was cut short, or of a dtype that NumPy does not have.
    """
    return parse_tensors(pathlib.Path(path).read_bytes(), path)


def parse_tensors(content, source):
    """{name: NumPy array} of a safetensors file's content.

    Args:
        content: bytes.
        source: the file in words.

    Raises:
        ValueError: as of `read_tensors`.
    """
    import ml_dtypes  # Keras' own: the dtypes that NumPy lacks
    from safetensors import SafetensorError, deserialize

    try:
        tensors = sorted(deserialize(content), key=operator.itemgetter(0))  # they come in any order
    except SafetensorError as error:
        raise ValueError(f"{source} is not a whole safetensors file: {error}. Copy or download it again.") from error
    dtypes = {
        "BOOL": bool,
        "U8": np.uint8,
        "I8": np.int8,
        "I16": np.int16,
        "U16": np.uint16,
        "I32": np.int32,
        "U32": np.uint32,
        "I64": np.int64,
        "U64": np.uint64,
        "F16": np.float16,
        "BF16": ml_dtypes.bfloat16,
        "F8_E4M3": ml_dtypes.float8_e4m3fn,
        "F8_E5M2": ml_dtypes.float8_e5m2,
        "F32": np.float32,
        "F64": np.float64,
    }
    unknown = sorted({f"{name} is {tensor['dtype']}" for name, tensor in tensors if tensor["dtype"] not in dtypes})
    if unknown:
        raise ValueError(
            f"{source} has tensors of a dtype that NumPy lacks: {', '.join(unknown[:5])}. Convert them, to F32 say."
        )
    return {name: np.frombuffer(tensor["data"], dtypes[tensor["dtype"]]).reshape(tensor["shape"]) for name, tensor in tensors}
