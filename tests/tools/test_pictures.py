"""Broken image files in every program: a line that names the file, and no finished work lost."""

import os
import shutil
import socket
import subprocess
import sys

import pytest
from PIL import Image

pytest.importorskip("tensorflow")

from keras_deit.models import DeiTImageClassifier
from tests.pictures import write_broken, write_good
from tests.scripts import ROOT, load_script, run_script
from tests.tools.conftest import flags

DIGITS = "deit_nano_distilled_patch4_32_digits"


@pytest.fixture
def digits(tmp_path):
    """A folder with a class of good and broken images, and a good image in each other class."""
    for label in "123456789":
        (tmp_path / "val" / label).mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / "val" / label / "black.png")
    folder = tmp_path / "val" / "0"
    folder.mkdir()
    write_good(folder)
    return tmp_path / "val", write_broken(folder)


@pytest.mark.slow
def test_evaluation_counts_the_rest(digits, tmp_path, capsys):
    from tests.tools.evaluate.helpers import run

    (row,) = run(digits[0], tmp_path / "table.csv")
    assert (row["images"], row["corrupt_images"]) == ("15", "7")  # with the directory
    *errors, directory = digits[1].items()
    stderr = capsys.readouterr().err
    for _, error in errors:
        assert f"\nSkipped: {error}\n" in stderr
    assert f"Skipped: {directory[0]} is not an image of a known format\n" in stderr


def test_training_names_the_files_before_the_first_epoch(digits, tmp_path):
    shutil.copytree(digits[0], tmp_path / "train", symlinks=True, ignore=lambda *_: ["pipe.jpg"])
    train = load_script("tools/train.py")
    with pytest.raises(SystemExit) as error:
        run_script(train, data=tmp_path, preset=DIGITS, output=tmp_path / "run")
    assert f"5 images in {tmp_path / 'train'} cannot be read." in error.value.code
    for name in ("cut.jpg", "empty.jpg", "huge.png", "link.jpg", "text.jpg"):
        assert f"{tmp_path / 'train' / '0' / name}" in error.value.code


@pytest.mark.backend
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of CSVLogger
def test_training_names_a_file_that_breaks_while_it_runs(given, tmp_path, monkeypatch):
    """It ended with two pages of TensorFlow's traceback."""
    photos = tmp_path / "photos"
    shutil.copytree(given / "photos", photos)
    file = photos / "train" / "cat" / "0.png"
    train = load_script("tools/train.py")
    plot = train.callbacks.__globals__["plot_curves"]

    def plot_and_break(*arguments):  # at the end of the first epoch
        plot(*arguments)
        file.write_text("no image")

    monkeypatch.setitem(train.callbacks.__globals__, "plot_curves", plot_and_break)
    with pytest.raises(SystemExit) as error:
        run_script(train, **flags(given, tmp_path / "run", data=str(photos), epochs=9))
    assert error.value.code == (
        f"Stopped. {file} is not an image that Pillow can read. Convert it to JPEG or PNG. Then "
        "start again with the same flags to resume after the last finished epoch."
    )
    (finished,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert finished.name in ("epoch_00001", "epoch_00002")  # batches are read ahead


def test_a_picture_of_attention_is_not_drawn(digits, tmp_path):
    tool = load_script("tools/visualize_attention.py")
    for path, error in digits[1].items():
        with pytest.raises(SystemExit) as exit:
            run_script(tool, preset=DIGITS, image=path, output=tmp_path / "out.png")
        assert exit.value.code == f"Nothing drawn. --image {path}: {error}"
    assert not (tmp_path / "out.png").exists()


@pytest.fixture
def address(tmp_path):
    """The page of tools/attention_explorer.py. Its errors are in `errors.txt`."""
    pytest.importorskip("gradio")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with open(tmp_path / "errors.txt", "w") as errors:
        page = subprocess.Popen(
            [sys.executable, ROOT / "tools" / "attention_explorer.py", f"--port={port}"],
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        assert any(str(port) in line for line in page.stdout), "the page did not start"
        yield f"http://127.0.0.1:{port}"
        page.terminate()
        page.communicate()


@pytest.mark.browser  # needs no browser, but Gradio
def test_the_page_names_the_file(address, tmp_path):
    """Of a file that is no image, the page said only that there is an error."""
    from gradio_client import Client, handle_file
    from gradio_client.exceptions import AppError

    for folder in ("good", "broken"):
        (tmp_path / folder).mkdir()
    classifier = DeiTImageClassifier.from_preset(DIGITS)
    client = Client(address, verbose=False)
    for path in write_good(tmp_path / "good"):
        upload = tmp_path / f"upload{path.suffix}"  # not every name can be sent
        shutil.copy(path, upload)
        found = client.predict(handle_file(str(upload)), api_name="/look")
        logits = classifier.predict([path], verbose=0)
        [[(label, probability)]] = classifier.decode_predictions(logits, top=1)
        assert found["label"] == label
        assert found["confidences"][0]["confidence"] == pytest.approx(probability, abs=1e-5)
    for path, expected in list(write_broken(tmp_path / "broken").items())[:4]:
        with pytest.raises(AppError) as error:
            client.predict(handle_file(str(path)), api_name="/look")
        assert str(error.value).endswith(expected.removeprefix(str(path.parent)))
    assert "Traceback" not in (tmp_path / "errors.txt").read_text()
