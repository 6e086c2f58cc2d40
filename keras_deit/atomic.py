"""Atomic writes: the target is never a partly written file or directory, even after a crash.

New content is written to a hidden directory beside the target and renamed. A lock on the hidden
directory says that its process is alive; the next write removes what dead processes left.
"""

import contextlib
import ctypes
import errno
import hashlib
import os
import pathlib
import re
import shutil
import tempfile

try:
    import fcntl
except ImportError:  # on Windows, what a killed process left stays
    fcntl = None  # type: ignore[assignment]

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of renameat2(2)
_ATTEMPTS = 100  # to replace a directory that other processes replace, too


@contextlib.contextmanager
def atomic_file(path):
    """Yields a temporary path whose file replaces `path` when the block ends.

    If the block raises, `path` keeps its old content and the temporary file is removed.

    Args:
        path: the file to write. Missing parent directories are created. A symbolic link stays, and
            the file that it points to is replaced.

    Example:

    >>> with atomic_file("results/table.md") as file:
    ...     file.write_text("| model | accuracy |")
    """
    path = resolved(path)
    with _work_directory(path) as work:
        new = work / path.name
        yield new
        _sync(new)
        os.replace(new, path)
        _sync(path.parent)


@contextlib.contextmanager
def atomic_directory(directory, replaceable):
    """Yields an empty directory that replaces `directory` when the block ends.

    If the block raises or the process is killed, `directory` keeps its old content. Of several
    processes that write at once, the last one wins. Where the system cannot exchange two
    directories in one step (other than Linux, some network file systems), a process that is killed
    between two renames leaves no directory; `recover_directory` and the next write restore it, but
    not on Windows, which has no locks that a dead process gives back.

    Args:
        directory: the directory to write. Missing parent directories are created. A symbolic link
            stays, and the directory that it points to is replaced.
        replaceable: names of the files that an existing directory may contain.

    Raises:
        ValueError: if `directory` is a file, contains anything that is not in `replaceable`, or
            contains the current directory.
    """
    directory = resolved(directory)
    _check_replaceable(directory, replaceable)
    with _work_directory(directory) as work:
        new = work / "new"
        new.mkdir()
        yield new
        for file in new.iterdir():
            _sync(file)
        _sync(new)
        _check_replaceable(directory, replaceable)  # others may have added files since
        _swap(new, directory, work / "old")
        _sync(directory.parent)


def check_file(path):
    """Refuses a path that `atomic_file` cannot write, before long work whose result goes there.

    Raises:
        ValueError: if `path` is a directory, or its parent cannot be created or written.
    """
    path = resolved(path)
    if path.is_dir():
        raise ValueError(f"Expected a file, but {path} is a directory. Use another path.")
    _check_parent(path)


def check_directory(directory, replaceable):
    """Refuses a path that `atomic_directory` cannot write; see `check_file`.

    Raises:
        ValueError: see `atomic_directory`; or if the parent cannot be created or written.
    """
    directory = resolved(directory)
    _check_parent(directory)
    _check_replaceable(directory, replaceable)


def _check_parent(target):
    try:
        with _work_directory(target):
            pass
    except OSError as error:
        raise ValueError(
            f"The folder {target.parent} cannot be created or written. Use another path. {error}"
        ) from error


def recover_directory(directory):
    """Restores a directory that a process moved away before it was killed.

    If the process is alive, this waits for it.

    Returns:
        Whether a process was alive or the directory was restored, so that it is worth another look.
    """
    directory = resolved(directory)
    found = False
    for work in _work_directories(directory):
        with _locked(work) as is_mine:
            if is_mine:
                found |= _restore(work, directory)
                continue
        with _locked(work, wait=True):
            found = True
    return found


def resolved(path):
    """`path` as an absolute `pathlib.Path`, with `~` and symbolic links followed.

    Raises:
        ValueError: if `path` is not a path.
    """
    text = os.fspath(path) if isinstance(path, os.PathLike) else path
    if not isinstance(text, str) or not text or "\0" in text:
        raise ValueError(
            f"A path must be a non-empty string or a `pathlib.Path`. Received: {path!r}"
        )
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"A path must be valid UTF-8. Received: {path!r}") from error
    return pathlib.Path(os.path.realpath(os.path.expanduser(text)))


@contextlib.contextmanager
def _work_directory(target):
    """A locked, hidden directory beside `target`, so that moving its content there is a rename."""
    with _parents(target):
        for work in _work_directories(target):
            with _locked(work) as is_mine:
                if is_mine:
                    _restore(work, target)
                    shutil.rmtree(work, ignore_errors=True)
        while True:
            work = pathlib.Path(tempfile.mkdtemp(prefix=_prefix(target), dir=target.parent))
            with _locked(work, wait=True):
                if not work.exists():
                    continue  # another process took it for abandoned before it was locked
                try:
                    yield work
                finally:
                    shutil.rmtree(work, ignore_errors=True)
                return


@contextlib.contextmanager
def _parents(target):
    """Creates the parents of `target`, and removes them again if nothing was written."""
    created = [parent for parent in target.parents if not parent.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        for parent in created:
            with contextlib.suppress(OSError):  # it is not empty
                parent.rmdir()


def _prefix(target):
    name = target.name
    if len(os.fsencode(name)) > 200:  # file systems take 255 bytes
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    return f".{name}.saving-"


def _work_directories(target):
    name = re.compile(re.escape(_prefix(target)) + r"\w{8}")
    if not target.parent.is_dir():
        return []
    return [entry for entry in target.parent.iterdir() if name.fullmatch(entry.name)]


@contextlib.contextmanager
def _locked(directory, wait=False):
    """Whether the block holds the lock of `directory`. A process that dies gives its locks back."""
    try:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW if fcntl else None
        descriptor = None if flags is None else os.open(directory, flags)
    except OSError:  # it is gone, belongs to somebody else, or is a link
        descriptor = None
    if descriptor is None:
        yield False
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            is_mine = True
        except OSError:  # held by another process, or a file system without locks
            is_mine = False
        yield is_mine
    finally:
        os.close(descriptor)


def _restore(work, directory):
    """Moves the old directory back if there is no other. Returns whether it did."""
    is_lost = (work / "old").is_dir() and not directory.exists()
    if is_lost:
        os.rename(work / "old", directory)
    return is_lost


def _swap(new, directory, old):
    """Renames `new` to `directory`, and moves what was there into the work directory."""
    for _ in range(_ATTEMPTS):
        if _exchanged(new, directory):
            return
        try:
            if directory.exists():
                shutil.rmtree(old, ignore_errors=True)
                os.rename(directory, old)
            os.rename(new, directory)
            return
        except OSError as error:
            _restore(old.parent, directory)
            # Another process has written the directory since, or moved it away: once more.
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
                raise
            failure = error
    raise failure


def _exchanged(first, second):
    """Exchanges two directories in one step. Returns `False` where that is not possible."""
    try:
        renameat2 = ctypes.CDLL(None).renameat2
    except (AttributeError, TypeError):  # not Linux
        return False
    paths = os.fsencode(first), os.fsencode(second)
    return renameat2(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE) == 0


def _sync(path):
    """Waits until a file, or the names in a directory, are on the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows opens no directories
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems cannot wait for a directory.
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP)):
            raise
    finally:
        os.close(descriptor)


def _check_replaceable(directory, replaceable):
    if _contains_current_directory(directory):
        raise ValueError(
            "Saving replaces the whole directory, so it cannot be the current directory or one "
            f"above it. Use the path of a new directory. Received: {directory}"
        )
    try:
        entries = list(directory.iterdir())
        others = sorted(
            entry.name for entry in entries if entry.name not in replaceable or entry.is_dir()
        )
    except FileNotFoundError:
        return
    except NotADirectoryError as error:
        raise ValueError(
            f"Saving writes a directory, but {directory} is a file. Use another path."
        ) from error
    if others:
        raise ValueError(
            f"Saving would replace the directory {directory}, which contains other files: "
            f"{', '.join(others[:5])}. Use another path or an empty directory."
        )


def _contains_current_directory(directory):
    try:
        here = pathlib.Path.cwd()
    except FileNotFoundError:  # it was removed
        return False
    return directory == here or directory in here.parents
