"""Checks of the weights files of version 0.1, before Keras reads them."""

import collections
import io


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
            found = list(_walk(file, h5py, set()))
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


def _walk(group, h5py, seen):
    """The shapes of all arrays."""
    for name in group:
        link, where = group.get(name, getlink=True), f"{group.name.rstrip('/')}/{name}"
        if not isinstance(link, h5py.HardLink):
            raise ValueError(f"{where} is a link of class {type(link).__name__}")
        entry = group[name]
        address = h5py.h5o.get_info(entry.id).addr
        if address in seen:
            raise ValueError(f"{where} is there twice")
        seen.add(address)
        if isinstance(entry, h5py.Group):
            yield from _walk(entry, h5py, seen)
        else:
            _check_array(entry, h5py, where)
            yield entry.shape


def _check_array(entry, h5py, where):
    if not isinstance(entry, h5py.Dataset):
        raise ValueError(f"{where} is a {type(entry).__name__}")
    if entry.is_virtual or entry.external:
        raise ValueError(f"{where} is stored in another file")
    if not _is_number(entry.dtype):
        raise ValueError(f"{where} has {entry.dtype} for numbers")
    stored = entry.id.get_storage_size()
    if entry.chunks is not None or stored != entry.size * entry.dtype.itemsize:
        raise ValueError(f"{where} has shape {entry.shape} and stores {stored:,} bytes")


def _is_number(dtype):
    is_bfloat16 = dtype.kind == "V" and dtype.itemsize == 2 and dtype.names is None  # as Keras does
    return dtype.kind in "fiu" or is_bfloat16
