"""Interrupted evaluations, and files that exist already."""

import errno
import json
import pathlib
import shutil
import sys

import keras
import pytest

from keras_deit.models import DeiTImageClassifier
from tests.tools.evaluate.helpers import figures, refusal, run, tool

counts = sys.modules["evaluation.counts"]


@pytest.mark.slow
@pytest.mark.parametrize("ended", [1, 5])
def test_interrupted_evaluation_resumes_with_the_same_result(
    ended, val, tiny, tmp_path, monkeypatch, capsys
):
    next(val.glob("*/001.png")).write_text("no image")
    reports = [str(tmp_path / name) for name in ("unbroken_report", "broken_report")]
    expected = run(val, tmp_path / "unbroken.csv", tiny, batch_size=4, class_report=reports[0])
    monkeypatch.setattr(counts, "BATCHES_BETWEEN_SAVES", 2)
    update = keras.utils.Progbar.update

    def stop(self, current, values=None, finalize=None):
        if self.target == 30 and current == min(4 * ended, 30):
            raise KeyboardInterrupt
        update(self, current, values, finalize)

    monkeypatch.setattr(keras.utils.Progbar, "update", stop)
    with pytest.raises(KeyboardInterrupt):
        run(val, tmp_path / "broken.csv", tiny, batch_size=4, class_report=reports[1])
    assert not (tmp_path / "broken.csv").exists()
    assert (tmp_path / ".broken.csv.progress").exists() == (ended > 1)
    capsys.readouterr()
    monkeypatch.setattr(keras.utils.Progbar, "update", update)
    (row,) = run(val, tmp_path / "broken.csv", tiny, batch_size=4, class_report=reports[1])
    assert f": image {1 + 8 * (ended // 2)} to 30" in capsys.readouterr().out
    assert figures(row) == figures(expected[0])
    assert not (tmp_path / ".broken.csv.progress").exists()
    files = [sorted(pathlib.Path(folder).iterdir()) for folder in reports]
    assert len(files[0]) == 5
    for unbroken, broken in zip(*files):
        assert broken.read_bytes() == unbroken.read_bytes(), broken


def test_progress_of_other_settings_is_ignored(val, tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(counts, "BATCHES_BETWEEN_SAVES", 1)
    with monkeypatch.context() as patch:
        patch.setattr(tool, "build_row", lambda *_: sys.exit("stopped"))
        assert refusal(val, tmp_path / "table.csv", tiny, batch_size=16) == "stopped"
    assert json.loads((tmp_path / ".table.csv.progress").read_text())["counts"]["seen"] == 30
    capsys.readouterr()
    run(val, tmp_path / "table.csv", tiny, batch_size=32)
    assert ": image 1 to 30" in capsys.readouterr().out


def test_progress_of_other_weights_is_ignored(val, tiny, tmp_path, monkeypatch, capsys):
    """Of a preset that was saved again, the counts of both models were added up."""
    monkeypatch.setattr(counts, "BATCHES_BETWEEN_SAVES", 1)
    preset = shutil.copytree(tiny, tmp_path / "preset")
    with monkeypatch.context() as patch:
        patch.setattr(tool, "build_row", lambda *_: sys.exit("stopped"))
        assert refusal(val, tmp_path / "table.csv", preset, batch_size=16) == "stopped"
    classifier = DeiTImageClassifier.from_preset(preset)
    classifier.head.set_weights([-array for array in classifier.head.get_weights()])
    classifier.save_to_preset(preset)
    capsys.readouterr()
    (row,) = run(val, tmp_path / "table.csv", preset, batch_size=16)
    assert ": image 1 to 30" in capsys.readouterr().out
    (expected,) = run(val, tmp_path / "other.csv", preset, batch_size=16)
    assert figures(row) == figures(expected)


def test_progress_of_an_earlier_version_is_ignored(tmp_path):
    """Before --class_report there were no `answers`: resuming raised a KeyError."""
    progress = counts.Progress(tmp_path / "progress", {"preset": "a"})
    progress.write({**counts.first_counts(), "seen": 16})
    assert progress.read()["seen"] == 16
    old = counts.first_counts()
    del old["answers"]
    progress.write({**old, "seen": 16})
    assert progress.read() == counts.first_counts()


@pytest.mark.parametrize(
    "content", [b"", b"[]", b'{"counts": {}}', b'{"settings": {}, "counts": 1}', b"\xff"]
)
def test_damaged_progress(content, tmp_path):
    path = tmp_path / "progress"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path} is damaged. Delete it"):
        counts.Progress(path, {}).read()


@pytest.mark.slow
def test_on_a_full_disk_the_table_stays_as_it_was(val, tiny, tmp_path, monkeypatch):
    run(val, tmp_path / "table.csv", tiny)
    before = (tmp_path / "table.csv").read_text()
    shutil.copytree(tiny, tmp_path / "copy")

    def write_half(path, text):
        with open(path, "w") as stream:
            stream.write(text[: len(text) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pathlib.Path, "write_text", write_half)
    assert (
        refusal(val, tmp_path / "table.csv", tmp_path / "copy")
        == "Not evaluated. [Errno 28] No space left on device"
    )
    monkeypatch.undo()
    assert (tmp_path / "table.csv").read_text() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "table.csv", "val"]
    # With free space, it resumes.
    rows = run(val, tmp_path / "table.csv", f"{tiny},{tmp_path / 'copy'}")
    assert [row["model_name"] for row in rows] == [str(tiny), str(tmp_path / "copy")]
    assert [row["top1_acc(%)"] for row in rows] == [rows[0]["top1_acc(%)"]] * 2


def test_another_file_is_not_overwritten(val, tmp_path):
    for content in (b"model_name,top1_acc(%)\na,1.0\n", b"\x89PNG\r\n\xff\x00"):
        (tmp_path / "table.csv").write_bytes(content)
        assert refusal(val, tmp_path / "table.csv") == (
            f"Not evaluated. --output {tmp_path / 'table.csv'}: The file exists and is not a table "
            "of this program. Choose another path."
        )
        assert (tmp_path / "table.csv").read_bytes() == content
