"""The examples run as a user runs them: in their own process and directory."""

import os
import pathlib
import re
import subprocess
import sys

import keras
import pytest

from keras_deit.models import DeiTImageClassifier
from tests.helpers import unseen_digits

ROOT = pathlib.Path(__file__).parents[2]


def run(directory, example, *arguments):
    result = subprocess.run(
        [sys.executable, ROOT / "examples" / example, *arguments],
        cwd=directory,
        capture_output=True,
        text=True,
        # As in a user's shell, where TensorFlow logs.
        env={name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
        | {"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result


@pytest.mark.parametrize(
    "program",
    sorted(
        file
        for folder in ("examples", "tools")
        for file in (ROOT / folder).glob("*.py")
        if folder == "examples" or "__main__" in file.read_text(encoding="utf-8")
    ),
    ids=lambda path: path.name,
)
def test_each_program_quiets_tensorflow_before_it_is_imported(program):
    lines = program.read_text(encoding="utf-8").splitlines()
    imports = [
        index
        for index, line in enumerate(lines)
        if re.match(r"(import|from) (keras|tensorflow|benchmarks)", line)
    ]
    assert not imports or any('"TF_CPP_MIN_LOG_LEVEL", "3"' in line for line in lines[: imports[0]])


@pytest.mark.process
def test_quickstart(tmp_path):
    result = run(tmp_path, "quickstart.py")
    printed = result.stdout
    assert "outputs are bit-equal" in printed
    # TensorFlow 2.21 logs these before it reads its level.
    unavoidable = ("WARNING: All log messages before absl", "port.cc:", "cudart_stub.cc:")
    assert [
        line
        for line in result.stderr.splitlines()
        if not any(words in line for words in unavoidable)
    ] == []
    assert {file.name for file in tmp_path.iterdir()} == {"quickstart.keras", "quickstart.png"}
    # The README states the figures that the script prints.
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for line in printed.splitlines()[:3]:
        assert f"    {line}\n" in readme


@pytest.mark.slow
def test_the_model_that_ships_reads_digits():
    """The accuracies when it was trained. A change in any layer would show here."""
    images, labels = unseen_digits()
    classifier = DeiTImageClassifier.from_preset("deit_nano_distilled_patch4_32_digits")
    assert (classifier.predict(images, verbose=0).argmax(axis=-1) == labels).mean() >= 0.97
    heads = keras.Model(classifier.input, classifier.token_logits)
    for logits in heads.predict(classifier.preprocessor(images), verbose=0).values():
        assert (logits.argmax(axis=-1) == labels).mean() >= 0.96


def test_the_weights_that_ship_are_under_a_megabyte():
    folder = ROOT / "keras_deit" / "assets" / "deit_nano_distilled_patch4_32_digits"
    assert sum(file.stat().st_size for file in folder.iterdir()) < 1_000_000
