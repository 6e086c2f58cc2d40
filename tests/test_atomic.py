import concurrent.futures
import os
import pathlib
import subprocess
import sys
import threading
import time

import pytest

from keras_deit import atomic
from keras_deit.atomic import atomic_directory, atomic_file, check_directory, check_file
from tests.helpers import raises


@pytest.fixture(params=["exchange", "two renames"], autouse=True)
def both_ways(request, monkeypatch):
    """Linux exchanges directories in one step; other systems rename twice."""
    if request.param == "two renames":
        monkeypatch.setattr(atomic, "_exchanged", lambda first, second: False)
    elif sys.platform != "linux":
        pytest.skip("needs renameat2")
    return request.param


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


def test_what_cannot_be_written_is_known_before(tmp_path):
    check_file(tmp_path / "deep" / "file")
    check_directory(tmp_path / "deep" / "preset", replaceable=())
    assert not list(tmp_path.iterdir())  # nothing is left of trying
    file, full = tmp_path / "file", tmp_path / "full"
    write(full, "mine")
    file.touch()
    check_file(file)
    check_directory(full, replaceable=("a.txt", "b.txt"))
    for check in (check_file, lambda path: check_directory(path, replaceable=())):
        with pytest.raises(ValueError, match=f"The folder {file} cannot be created or written"):
            check(file / "new")
    with raises(f"Expected a file, but {full} is a directory. Use another path."):
        check_file(full)
    with pytest.raises(ValueError, match=r"contains other files: a.txt, b.txt"):
        check_directory(full, replaceable=())


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
    monkeypatch.setattr(atomic, "_exchanged", lambda first, second: False)
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


def killed(tmp_path, when, both_ways):
    """Runs a process that dies with SIGKILL while it writes `tmp_path / "preset"`."""
    script = f"""
import os, signal, sys
sys.path.insert(0, {str(pathlib.Path(atomic.__file__).parent)!r})
import atomic
if {both_ways!r} == "two renames":
    atomic._exchanged = lambda first, second: False
def kill():
    os.kill(os.getpid(), signal.SIGKILL)
if {when!r} == "between the renames":
    rename = os.rename
    os.rename = lambda source, target: kill() if source.name == "new" else rename(source, target)
with atomic.atomic_directory({str(tmp_path / "preset")!r}, replaceable=("a.txt", "b.txt")) as folder:
    (folder / "a.txt").write_text("new")
    if {when!r} == "while writing":
        kill()
"""
    return subprocess.run([sys.executable, "-c", script]).returncode == -9


@pytest.mark.parametrize("existing", [True, False])
def test_a_process_killed_while_it_writes_leaves_the_old_directory_or_none(
    existing, tmp_path, both_ways
):
    target = tmp_path / "preset"
    if existing:
        write(target, "old")
    assert killed(tmp_path, "while writing", both_ways)
    if existing:
        assert texts(target) == {"a.txt": "old", "b.txt": "old"}
    else:
        assert not target.exists()
    assert len(list(tmp_path.iterdir())) == 1 + existing
    write(target, "new")
    assert texts(target) == {"a.txt": "new", "b.txt": "new"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["preset"]


@pytest.mark.parametrize("next_step", ["recover", "write"])
def test_a_process_killed_between_two_renames_loses_nothing(next_step, tmp_path, both_ways):
    target = tmp_path / "preset"
    write(target, "old")
    was_killed = killed(tmp_path, "between the renames", both_ways)
    assert was_killed == (both_ways == "two renames")
    if both_ways == "exchange":
        return  # there are no two renames
    assert not target.exists()
    if next_step == "recover":
        atomic.recover_directory(target)
    else:
        with pytest.raises(OSError, match="disk full"):
            with atomic_directory(target, replaceable=("a.txt", "b.txt")):
                raise OSError("disk full")
        assert [entry.name for entry in tmp_path.iterdir()] == ["preset"]
    assert texts(target) == {"a.txt": "old", "b.txt": "old"}


def test_recovering_waits_for_a_process_that_is_alive(tmp_path, both_ways):
    target = tmp_path / "preset"
    write(target, "old")
    with atomic_directory(target, replaceable=("a.txt", "b.txt")) as folder:
        (folder / "a.txt").write_text("new")
        os.rename(target, folder.parent / "old")  # the moment between two renames
        waiting = threading.Thread(target=atomic.recover_directory, args=[target])
        waiting.start()
        waiting.join(0.2)
        assert waiting.is_alive() and not target.exists()
    waiting.join()
    assert texts(target) == {"a.txt": "new"}


def test_the_directory_of_a_process_that_is_alive_stays(tmp_path):
    target = tmp_path / "preset"
    with atomic_directory(target, replaceable=("a.txt", "b.txt")) as folder:
        (folder / "a.txt").write_text("first")
        write(target, "second")
        assert folder.exists()
    assert texts(target) == {"a.txt": "first"}


def test_of_many_writers_at_once_one_wins_and_none_fails(tmp_path):
    target = tmp_path / "preset"
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(write, target, str(text)) for text in range(100)]:
            done.result()
    content = texts(target)
    assert content["a.txt"] == content["b.txt"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["preset"]


def test_a_symbolic_link_stays_one(tmp_path):
    write(tmp_path / "v1", "old")
    (tmp_path / "latest").symlink_to("v1")
    write(tmp_path / "latest", "new")
    assert (tmp_path / "latest").is_symlink()
    assert texts(tmp_path / "v1") == {"a.txt": "new", "b.txt": "new"}
    (tmp_path / "link.md").symlink_to("table.md")
    with atomic_file(tmp_path / "link.md") as file:
        file.write_text("new")
    assert (tmp_path / "link.md").is_symlink() and (tmp_path / "table.md").read_text() == "new"


def test_the_current_directory_is_not_replaced(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for path, meant in ((".", tmp_path / "here"), ("..", tmp_path), ("/", pathlib.Path("/"))):
        with raises(
            "Saving replaces the whole directory, so it cannot be the current directory or one "
            f"above it. Use the path of a new directory. Received: {meant}"
        ):
            write(path, "new")


@pytest.mark.parametrize("path", ["", "a\0b", b"preset", 5, None, pathlib.PurePath])
def test_only_a_path_is_a_path(path):
    with raises(f"A path must be a non-empty string or a `pathlib.Path`. Received: {path!r}"):
        write(path, "new")


def test_a_path_that_is_not_utf_8_is_refused():
    with raises("A path must be valid UTF-8. Received: 'pre\\udcffset'"):
        write("pre\udcffset", "new")


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
        f"Saving would replace the directory {tmp_path}, which contains other files: thesis.tex. "
        "Use another path or an empty directory."
    ):
        write(tmp_path, "new")
    (tmp_path / "folder" / "a.txt").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"contains other files: a\.txt"):
        write(tmp_path / "folder", "new")
    file = tmp_path / "thesis.tex"
    with raises(f"Saving writes a directory, but {file} is a file. Use another path."):
        write(file, "new")
    assert file.read_text() == "years of work"


def test_a_file_that_was_added_meanwhile_is_not_lost(tmp_path):
    target = tmp_path / "preset"
    write(target, "old")
    with pytest.raises(ValueError, match="contains other files: thesis.tex"):
        with atomic_directory(target, replaceable=("a.txt", "b.txt")) as folder:
            (folder / "a.txt").write_text("new")
            (target / "thesis.tex").write_text("years of work")
    assert texts(target) == {"a.txt": "old", "b.txt": "old", "thesis.tex": "years of work"}


def test_a_failure_leaves_no_parents_behind(tmp_path):
    with pytest.raises(OSError, match="disk full"):
        with atomic_directory(tmp_path / "some" / "deep" / "preset", replaceable=()):
            raise OSError("disk full")
    assert list(tmp_path.iterdir()) == []


def test_the_longest_name(tmp_path):
    target = tmp_path / ("p" * 255)
    for text in ("old", "new"):
        write(target, text)
    assert texts(target) == {"a.txt": "new", "b.txt": "new"}
    assert list(tmp_path.iterdir()) == [target]


def test_a_link_with_the_name_of_leftovers_is_left_alone(tmp_path):
    (tmp_path / "elsewhere" / "old").mkdir(parents=True)
    link = tmp_path / ".preset.saving-abcdefgh"
    link.symlink_to("elsewhere")
    atomic.recover_directory(tmp_path / "preset")
    write(tmp_path / "preset", "new")
    assert link.is_symlink() and (tmp_path / "elsewhere" / "old").exists()


def test_leftovers_that_cannot_be_opened_are_left_alone(tmp_path, monkeypatch):
    leftover = tmp_path / ".preset.saving-abcdefgh"
    leftover.mkdir()
    opens = os.open

    def no_permission(path, *arguments, **options):
        if path == leftover:
            raise PermissionError(path)
        return opens(path, *arguments, **options)

    monkeypatch.setattr(atomic.os, "open", no_permission)
    write(tmp_path / "preset", "new")
    assert leftover.exists()


WRITER = """
import sys
sys.path.insert(0, sys.argv[1])
import atomic
if sys.argv[3] == "two renames":
    atomic._exchanged = lambda first, second: False
print("ready", flush=True)
number = 0
while True:
    number += 1
    with atomic.atomic_directory(sys.argv[2], replaceable=("a.txt", "b.txt")) as folder:
        for name in ("a.txt", "b.txt"):
            (folder / name).write_text(str(number))
"""


@pytest.mark.process
@pytest.mark.slow
def test_processes_killed_at_any_time_lose_nothing(tmp_path, both_ways, rng):
    """Fifty times, with the next one recovering what the last one left."""
    target = tmp_path / "preset"
    write(target, "0")
    module = str(pathlib.Path(atomic.__file__).parent)
    for _ in range(50):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, module, str(target), both_ways], stdout=subprocess.PIPE
        )
        with process:
            process.stdout.readline()
            time.sleep(rng.uniform(0, 0.02))
            process.kill()
        if both_ways == "two renames":
            atomic.recover_directory(target)
        content = texts(target)
        assert content.keys() == {"a.txt", "b.txt"} and len(set(content.values())) == 1
    write(target, "last")
    assert [entry.name for entry in tmp_path.iterdir()] == ["preset"]
