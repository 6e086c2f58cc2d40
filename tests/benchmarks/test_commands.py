"""The smaller benchmarks run and print tables of numbers."""

import keras
import pytest

from benchmarks import digits
from tests.benchmarks.test_run import run

pytestmark = pytest.mark.process


def table(module, *arguments):
    """{first cell: other cells} of a printed table."""
    result = run(module, *arguments)
    assert result.returncode == 0, result.stderr
    lines = [
        line.strip("|").split("|") for line in result.stdout.splitlines() if line.startswith("| ")
    ]
    return {first.strip(): [cell.strip() for cell in others] for first, *others in lines[2:]}


def test_parts():
    rows = table("parts", "--preset", digits.PRESET, "--batch_size", 2, "--rounds", 2, "--nojit")
    for part in ("whole model", "patch embedding", "LayerNorm", "MLP, first product and GELU"):
        assert float(rows[part][1]) > 0


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="tf.data, whatever the backend")
def test_augmentation():
    rows = table(
        "augmentation", "--batch_size", 2, "--image_size", 32, "--batches", 1, "--rounds", 1
    )
    assert len(rows) == 4
    for name in ("keras_deit, DeiT", "keras_deit, DeiT III", "Keras core, DeiT"):
        assert float(rows[name][0]) > 0


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="most of it is NumPy")
def test_input_pipeline():
    pytest.importorskip("grain")
    sizes = ("--batch_size", 2, "--image_size", 32, "--batches", 1, "--rounds", 1)
    rows = table("input_pipeline", *sizes)
    assert {work: [bool(cell) for cell in cells] for work, cells in rows.items()} == {
        "decode": [True, True, True],
        "crop": [True, True, True],
        "deit": [True, False, False],
    }
    rows = table("input_pipeline", *sizes, "--fit", "--preset", digits.PRESET)
    assert list(rows) == [
        "from memory",
        "crop, tf.data",
        "crop, PyDataset",
        "crop, grain",
        "deit, tf.data",
    ]
    assert all(float(cells[1]) > 0 for cells in rows.values())


def test_any_size():
    preset = "deit_tiny_patch16_224"
    (row,) = table("any_size", "--preset", preset, "--image_size", 32, "--rounds", 2).values()
    assert row[0] == "32"
    assert float(row[1]) > 0 and float(row[2]) > 0


def test_time_to_import_and_to_load():
    rows = table(
        "startup",
        "--modules",
        "json,keras_deit,no_such_module",
        "--preset",
        digits.PRESET,
        "--rounds",
        1,
    )
    assert float(rows["json"][0]) >= 0
    assert rows["json"][1] == ""
    assert float(rows["keras_deit"][1]) > 0
    assert rows["no_such_module"][0].startswith("cannot be imported")


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="names its backend itself")
def test_memory_of_a_training_step():
    rows = table("training_memory", "--preset", digits.PRESET, "--batch_size", 64, "--updates", 1)
    assert list(rows) == ["as it is", "remat=True", "gradient_accumulation_steps=4"]
    for memory, share, _, _ in rows.values():
        assert float(memory) > 0
        assert float(share) > 0
