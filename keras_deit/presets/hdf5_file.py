"""Checks of the weights files of version 0.1, before Keras reads them."""

import collections
import io

_DEEPEST = 32


def check_hdf5(content, shapes, where):
    """Refuses an HDF5 file with anything but groups and plain arrays.

    A link or external storage would read another file, and a compressed array can be a million
    times as large as the file.

    Args:
        content: bytes.
        shapes: the shapes of the arrays, which metadata.json lists.
        where: name of the file in errors.

    Raises:
        ValueError: if the file is damaged, has anything else, or has other shapes.
    """
    # Imported here so that `import keras_deit` stays fast.
    import h5py

    try:
        with h5py.File(io.BytesIO(content), "r") as file:
            found = list(_walk(file, h5py))
    # h5py has an exception for nearly every way in which a file can be damaged.
    except Exception as error:
        raise ValueError(
            f"{where} is damaged, or is not what `save_to_preset` wrote: {error}. Copy the preset "
            "again."
        ) from error
    expected = collections.Counter(tuple(shape) for shape in shapes)
    other = collections.Counter(found) - expected or expected - collections.Counter(found)
    if other:
        raise ValueError(
            f"The arrays of {where} are not those that `metadata.json` lists: "
            f"{', '.join(map(str, list(other)[:5]))}. Copy the preset again."
        )


def _walk(group, h5py, depth=0):
    """The shapes of all arrays."""
    if depth > _DEEPEST:
        raise ValueError(f"more than {_DEEPEST} groups inside each other")
    for name in group:
        link = group.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink):
            raise ValueError(f"{group.name}/{name} is a {type(link).__name__}")
        entry = group[name]
        if isinstance(entry, h5py.Group):
            yield from _walk(entry, h5py, depth + 1)
        elif not isinstance(entry, h5py.Dataset):
            raise ValueError(f"{entry.name} is a {type(entry).__name__}")
        elif entry.is_virtual or entry.external:
            raise ValueError(f"{entry.name} is stored in another file")
        elif entry.chunks is not None or not _is_number(entry.dtype):
            raise ValueError(f"{entry.name} is compressed, or has {entry.dtype} for numbers")
        else:
            yield entry.shape


def _is_number(dtype):
    is_bfloat16 = dtype.kind == "V" and dtype.itemsize == 2 and dtype.names is None  # as Keras does
    return dtype.kind in "fiu" or is_bfloat16
