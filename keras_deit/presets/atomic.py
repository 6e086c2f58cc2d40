"""Writing a directory so that it is there whole or not at all."""

import contextlib
import os
import pathlib
import shutil
import tempfile


@contextlib.contextmanager
def atomic_directory(directory, replaceable):
    """Yields an empty folder that becomes `directory` when the block ends, and is gone if the block
    fails.

    A process killed at any moment leaves the old directory or none, and at worst a hidden folder
    beside it.

    Args:
        directory: path. Its parents are made; an existing directory is replaced.
        replaceable: names of the files that may be in a directory that is replaced.

    Raises:
        ValueError: `directory` is a file, or holds anything that is not replaceable.
    """
    directory = pathlib.Path(directory).absolute()
    _check_replaceable(directory, replaceable)
    directory.parent.mkdir(parents=True, exist_ok=True)
    work = pathlib.Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        new, old = work / "new", work / "old"
        new.mkdir()
        yield new
        for file in new.iterdir():
            with open(file, "rb+") as stream:
                os.fsync(stream.fileno())
        if directory.exists():
            os.rename(directory, old)
        try:
            os.rename(new, directory)
        except OSError:
            if old.exists():
                os.rename(old, directory)
            raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _check_replaceable(directory, replaceable):
    if not directory.exists():
        return
    if not directory.is_dir():
        raise ValueError(f"A preset is a directory, but {directory} is a file. Give another path.")
    others = sorted(
        entry.name
        for entry in directory.iterdir()
        if entry.name not in replaceable or not entry.is_file()
    )
    if others:
        raise ValueError(
            f"Saving would replace the directory {directory}, which holds files that are not of a "
            "preset: "
            f"{', '.join(others[:5])}. Give another path, or an empty directory."
        )
