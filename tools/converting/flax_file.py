"""Reads what Flax's `msgpack_serialize` wrote, without Flax. Runs no code from the file.

A file is a tree of msgpack maps. An array is extension type 1: another msgpack list, of its shape,
the name of its dtype, and its bytes in row-major order. Source: google/flax at 00a973a,
flax/serialization.py.
"""

import ml_dtypes
import numpy as np

NDARRAY = 1  # the extension type
_DTYPES = {
    **{name: np.dtype(name) for name in ("float16", "float32", "float64")},
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


def read_arrays(path):
    """{"model/embed/wpe": NumPy array, ...} of a file.

    Raises:
        ValueError: if the file is damaged, or contains anything but arrays of floats.
    """
    if not path.is_file():
        raise ValueError("The file does not exist.")
    try:
        import msgpack
    except ImportError as error:
        raise ValueError("Reading it needs msgpack: `pip install msgpack`.") from error
    try:
        content = msgpack.unpackb(path.read_bytes())
    except (ValueError, msgpack.UnpackException) as error:
        raise ValueError(
            f"The file is truncated or not one of Flax's: {error}. Download it again."
        ) from error
    arrays, unread = {}, [("", content)]
    while unread:  # no recursion, because a file may be deep
        name, value = unread.pop()
        if isinstance(value, dict):
            prefix = f"{name}/" if name else ""
            unread += [(f"{prefix}{key}", inner) for key, inner in value.items()]
        elif isinstance(value, msgpack.ExtType) and value.code == NDARRAY:
            arrays[name] = _array(name, value.data)
        else:
            raise ValueError(
                "The file must contain maps and arrays alone. Save only the parameters. Received: "
                f"{name or 'the whole file'} is of type {type(value).__name__}"
            )
    return dict(sorted(arrays.items()))


def _array(name, data):
    import msgpack

    try:
        shape, dtype, values = msgpack.unpackb(data)
        if dtype in _DTYPES:
            return np.frombuffer(values, _DTYPES[dtype]).reshape(shape)
    except (TypeError, ValueError, msgpack.UnpackException) as error:
        raise ValueError(
            f"The file is damaged: {name} is no array: {error}. Download it again."
        ) from error
    raise ValueError(f"{name} must be {', '.join(_DTYPES)}. Received: {dtype}")
