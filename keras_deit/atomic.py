"""Atomic writes: the target is never a partly written file or directory, even after a crash."""

import contextlib
import os
import pathlib
import shutil
import tempfile


@contextlib.contextmanager
def atomic_file(path):
    """Yields a temporary path whose file replaces `path` when the block ends.

    If the block raises, `path` keeps its old content and the temporary file is removed.

    Args:
        path: the file to write. Missing parent directories are created.

    Example:

    >>> with atomic_file("results/table.md") as file:
    ...     file.write_text("| model | accuracy |")
    """
    path = pathlib.Path(path).absolute()
    with _work_directory(path) as work:
        new = work / path.name
        yield new
        _sync(new)
        os.replace(new, path)


@contextlib.contextmanager
def atomic_directory(directory, replaceable):
    """Yields an empty directory that replaces `directory` when the block ends.

    If the block raises, `directory` keeps its old content. If the process is killed, it keeps its
    old content or is missing, and a hidden directory beside it may remain.

    Args:
        directory: the directory to write. Missing parent directories are created.
        replaceable: names of the files that an existing directory may contain.

    Raises:
        ValueError: if `directory` is a file or contains anything that is not in `replaceable`.
    """
    directory = pathlib.Path(directory).absolute()
    _check_replaceable(directory, replaceable)
    with _work_directory(directory) as work:
        new, old = work / "new", work / "old"
        new.mkdir()
        yield new
        for file in new.iterdir():
            _sync(file)
        if directory.exists():
            os.rename(directory, old)
        try:
            os.rename(new, directory)
        except OSError:
            if old.exists():
                os.rename(old, directory)
            raise


@contextlib.contextmanager
def _work_directory(target):
    """A hidden directory beside `target`, so that moving its content to `target` is a rename."""
    target.parent.mkdir(parents=True, exist_ok=True)
    work = pathlib.Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _sync(file):
    with open(file, "rb+") as stream:
        os.fsync(stream.fileno())


def _check_replaceable(directory, replaceable):
    if not directory.exists():
        return
    if not directory.is_dir():
        raise ValueError(f"A preset is a directory, but {directory} is a file. Use another path.")
    others = sorted(
        entry.name
        for entry in directory.iterdir()
        if entry.name not in replaceable or not entry.is_file()
    )
    if others:
        raise ValueError(
            f"Saving would replace the directory {directory}, which contains files that do not "
            f"belong to a preset: {', '.join(others[:5])}. Use another path or an empty directory."
        )
