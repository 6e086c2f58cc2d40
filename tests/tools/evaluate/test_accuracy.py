"""Accuracy on folders and TensorFlow datasets."""

import csv
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from keras_deit.models import DeiTImageClassifier
from tests.scripts import ROOT, run_script
from tests.tools.evaluate.helpers import DIGITS, answers, refusal, run, tool, write_folder

first_counts = sys.modules["evaluation.counts"].first_counts
DEIT_TF = sys.modules["evaluation.table"].DEIT_TF


@pytest.mark.backend
def test_the_shipped_model_on_a_folder_of_digits(digits, tmp_path, capsys):
    images, labels = digits
    folder = write_folder(tmp_path / "val", images, [str(label) for label in labels])
    (row,) = run(folder, tmp_path / "new" / "table.csv")
    header, line = (tmp_path / "new" / "table.csv").read_text().splitlines()
    assert header.startswith("model_name,top1_acc(%),top5_acc(%),published_top1_acc(%),difference,")
    assert line.startswith(f"{DIGITS},97.222,100.000,,,,,,360,0,")  # 350 of 360, as README.md says
    assert float(row["images_per_second"]) > 0
    assert "360/360" in capsys.readouterr().out
    # A row that is there already is not measured again, and other settings do not fit the table.
    assert run(f"{folder}/", tmp_path / "new" / "table.csv") == [row]
    assert capsys.readouterr().out == (
        f"Skipped {DIGITS}: {tmp_path / 'new' / 'table.csv'} has a row of it. Delete the row to "
        "evaluate it again.\n"
    )
    assert refusal(folder, tmp_path / "new" / "table.csv", crop_ratio=0.9, dtype="bfloat16") == (
        f"Not evaluated. --output {tmp_path / 'new' / 'table.csv'}: The table contains results of "
        "other images or settings. Use the same settings to add rows, or choose another path. "
        f"Received: {DIGITS}: crop_ratio was preset's and is 0.9; dtype was preset's and is "
        "bfloat16"
    )
    next(folder.glob("*/*")).unlink()
    assert f"Received: {DIGITS}: data was folder:" in refusal(
        folder, tmp_path / "new" / "table.csv"
    )
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["table.csv"]


def test_published_accuracies_are_beside_the_measured_ones(val):
    images = tool.open_images(str(val))
    counts = {
        **first_counts(),
        "seen": 50_003,
        "corrupt": 3,
        "top1": 36_068,
        "top5": 45_564,
        "real": 3,
        "real_images": 4,
    }
    row = tool.build_row("deit_tiny_patch16_224", counts, images, {})
    assert (
        ",".join(list(row.values())[:10])
        == "deit_tiny_patch16_224,72.136,91.128,72.202,-0.066,72.136,91.128,75.000,50000,3"
    )
    row = tool.build_row("deit3_huge_patch14_224", {**counts, "real_images": 0}, images, {})
    assert ",".join(list(row.values())[3:8]) == "85.2,-13.064,,,"


def test_the_table_of_deit_tf():
    with open(DEIT_TF, newline="") as stream:
        rows = {row["model_name"]: row for row in csv.DictReader(stream)}
    assert set(rows) == {
        name
        for name, row in DeiTImageClassifier.presets.items()
        if row["version"] == "deit" and "top1" in row
    }
    for name, row in rows.items():
        assert float(row["top1_acc(%)"]) == pytest.approx(
            DeiTImageClassifier.presets[name]["top1"], abs=0.07
        )
        assert float(row["top5_acc(%)"]) > float(row["top1_acc(%)"])


def test_webp_and_home_directory(val, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for file in sorted(val.glob("*/*.png"))[::2]:
        Image.open(file).save(file.with_suffix(".webp"), lossless=True)
        file.unlink()
    run_script(tool, data_dir="~/val", preset=DIGITS, output="~/table.csv", batch_size=4)
    with open(tmp_path / "table.csv", newline="") as stream:
        (row,) = csv.DictReader(stream)
    assert (row["images"], row["corrupt_images"]) == ("30", "0")


@pytest.mark.slow
def test_unreadable_images_are_printed_and_counted(val, digits, tiny, tmp_path, capsys):
    images, labels = digits
    files = [val / str(label) / f"{number:03d}.png" for number, label in enumerate(labels[:30])]
    # Of the class that the model predicts for a black image, so that counting them would show.
    (nothing,) = answers(np.zeros((1, 1, 1), "uint8"))
    cut, text = np.flatnonzero(labels[:30] == nothing)[:2]
    files[cut].write_bytes(files[cut].read_bytes()[:-30])
    files[text].write_text("no image")
    (val / "0" / "notes.txt").write_text("no image either")
    (row,) = run(val, tmp_path / "table.csv", batch_size=4)
    assert (row["images"], row["corrupt_images"]) == ("28", "3")
    good = [number for number in range(30) if number not in (cut, text)]
    hits = answers(images[good]) == labels[good]
    assert row["top1_acc(%)"] == f"{100 * hits.mean():.3f}"
    messages = [
        line for line in capsys.readouterr().err.splitlines() if line.startswith("Skipped: ")
    ]
    assert sorted(message.split()[1] for message in messages) == sorted(
        [str(val / "0" / "notes.txt"), str(files[cut]), str(files[text])]
    )
    for file in files:
        file.write_text("no image")
    assert (
        refusal(val, tmp_path / "none.csv", tiny)
        == "Not evaluated. None of the 30 images can be read."
    )
    assert not (tmp_path / "none.csv").exists()


@pytest.mark.slow
def test_classes_are_found_by_name(digits, tiny, tmp_path):
    """Folders are in alphabetical order, labels in another."""
    images, labels = digits
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    DeiTImageClassifier.from_preset(tiny, labels=names).save_to_preset(tmp_path / "named")
    folder = write_folder(tmp_path / "val", images[:30], [names[label] for label in labels[:30]])
    (row,) = run(folder, tmp_path / "table.csv", tmp_path / "named")
    assert row["top1_acc(%)"] == f"{100 * np.mean(answers(images[:30], tiny) == labels[:30]):.3f}"


@pytest.mark.slow
def test_tensorflow_datasets(digits, tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    tfds = pytest.importorskip("tensorflow_datasets")
    images, labels = digits

    class UnseenDigits(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(None, None, 1)),
                "label": tfds.features.ClassLabel(names=list("0123456789")),
            }
            return self.dataset_info_from_configs(
                features=tfds.features.FeaturesDict(features), supervised_keys=("image", "label")
            )

        def _split_generators(self, dl_manager):
            return {"test": self._generate_examples()}

        def _generate_examples(self):
            for number in range(30):
                yield number, {"image": images[number][..., None], "label": labels[number]}

    (row,) = run("tfds:unseen_digits", tmp_path / "table.csv", tiny, batch_size=8)
    assert (row["images"], row["data"]) == ("30", "unseen_digits/1.0.0:test")
    assert row["top1_acc(%)"] == f"{100 * np.mean(answers(images[:30], tiny) == labels[:30]):.3f}"
    assert "nothing_such" in refusal("tfds:nothing_such", tmp_path / "none.csv")
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    assert refusal("tfds:unseen_digits", tmp_path / "none.csv") == (
        "Not evaluated. --data_dir tfds:unseen_digits: Reading the dataset unseen_digits needs "
        "TensorFlow Datasets: `pip install tensorflow-datasets`."
    )


@pytest.mark.backend
@pytest.mark.process
def test_on_the_command_line(val, tmp_path):
    result = subprocess.run(
        [
            sys.executable,
            ROOT / "tools" / "evaluate.py",
            f"--data_dir={val}",
            f"--preset={DIGITS}",
            f"--output={tmp_path / 'table.csv'}",
            "--crop_ratio=0",
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert result.returncode == 1
    assert f"\nNot evaluated. --preset {DIGITS}: `crop_ratio` must be " in "\n" + result.stderr
    assert "Traceback" not in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["val"]
