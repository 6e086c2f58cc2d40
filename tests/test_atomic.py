import pathlib
import subprocess
import sys

import pytest

from keras_deit import atomic
from keras_deit.atomic import atomic_directory, atomic_file
from tests.helpers import raises


def write(directory, text):
    with atomic_directory(directory, replaceable=("a.txt", "b.txt")) as folder:
        (folder / "a.txt").write_text(text)
        (folder / "b.txt").write_text(text)


def texts(directory):
    return {file.name: file.read_text() for file in directory.iterdir()}


def test_writes_and_replaces(tmp_path):
    target = tmp_path / "deep" / "preset"
    write(target, "old")
    write(target, "new")
    assert texts(target) == {"a.txt": "new", "b.txt": "new"}
    assert [entry.name for entry in target.parent.iterdir()] == ["preset"]


def test_a_failure_leaves_the_old_directory_and_no_trace(tmp_path):
    target = tmp_path / "preset"
    write(target, "old")
    with pytest.raises(OSError, match="disk full"):
        with atomic_directory(target, replaceable=("a.txt", "b.txt")) as folder:
            (folder / "a.txt").write_text("new")
            raise OSError("disk full")
    assert texts(target) == {"a.txt": "old", "b.txt": "old"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["preset"]


def test_a_failed_swap_puts_the_old_directory_back(tmp_path, monkeypatch):
    target = tmp_path / "preset"
    write(target, "old")
    rename = atomic.os.rename

    def rename_all_but_the_new(source, destination):
        if pathlib.Path(source).name == "new":
            raise OSError("no")
        rename(source, destination)

    monkeypatch.setattr(atomic.os, "rename", rename_all_but_the_new)
    with pytest.raises(OSError, match="no"):
        write(target, "new")
    assert texts(target) == {"a.txt": "old", "b.txt": "old"}


@pytest.mark.parametrize("existing", [True, False])
def test_a_process_killed_half_way_leaves_the_old_directory_or_none(existing, tmp_path):
    target = tmp_path / "preset"
    if existing:
        write(target, "old")
    script = f"""
import os, signal, sys
sys.path.insert(0, {str(pathlib.Path(atomic.__file__).parent)!r})
from atomic import atomic_directory
with atomic_directory({str(target)!r}, replaceable=("a.txt", "b.txt")) as folder:
    (folder / "a.txt").write_text("new")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", script]).returncode == -9
    if existing:
        assert texts(target) == {"a.txt": "old", "b.txt": "old"}
    else:
        assert not target.exists()
    write(target, "new")
    assert texts(target) == {"a.txt": "new", "b.txt": "new"}


def test_a_file_is_replaced_when_the_block_ends(tmp_path):
    target = tmp_path / "deep" / "table.md"
    for text in ("old", "new"):
        with atomic_file(target) as file:
            file.write_text(text)
    assert target.read_text() == "new"
    with pytest.raises(OSError, match="disk full"):
        with atomic_file(target) as file:
            file.write_text("cut sh")
            raise OSError("disk full")
    assert target.read_text() == "new"
    assert [entry.name for entry in target.parent.iterdir()] == ["table.md"]


def test_nothing_of_the_users_is_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with raises(
        f"Saving would replace the directory {tmp_path}, which contains files that do not "
        "belong to a preset: thesis.tex. Use another path or an empty directory."
    ):
        write(tmp_path, "new")
    (tmp_path / "folder" / "a.txt").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"files that do not belong to a preset: a\.txt"):
        write(tmp_path / "folder", "new")
    file = tmp_path / "thesis.tex"
    with raises(f"A preset is a directory, but {file} is a file. Use another path."):
        write(file, "new")
    assert file.read_text() == "years of work"
