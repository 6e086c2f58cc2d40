"""The pages in docs/ run as they stand, on less data."""

import pathlib
import re

import keras
import numpy as np
import pytest

from keras_deit.layers import DeiTImageConverter
from keras_deit.models import DeiTBackbone, DeiTImageClassifier
from tests.conftest import BACKEND

DOCS = pathlib.Path(__file__).parent.parent / "docs"


def run(page, *replacements):
    (code,) = re.findall(
        r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), flags=re.DOTALL
    )
    for old, new in replacements:
        assert old in code
        code = code.replace(old, new)
    names = {}
    exec(compile(code, page, "exec"), names)
    return names


def test_distil(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # Compiling takes longer than this little training, but on JAX.
    jit = BACKEND == "jax"
    eager = (
        'metrics=["accuracy"])\ndistiller.fit',
        f'metrics=["accuracy"], jit_compile={jit})\ndistiller.fit',
    )
    names = run(
        "distil.md",
        ("slice(0, 1437)", "slice(0, 64)"),
        ("slice(1437, None)", "slice(1437, 1469)"),
        eager,
    )
    losses = names["distiller"].history.history
    assert losses["class_loss"][-1] < losses["class_loss"][0]
    student = DeiTImageClassifier.from_preset("student")
    images = names["images"][:4]
    np.testing.assert_allclose(
        student.predict(images, verbose=0), names["student"].predict(images, verbose=0), atol=1e-5
    )


def test_fine_tune(tmp_path, monkeypatch):
    pytest.importorskip("tensorflow")
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for index in range(10):
            image = rng.integers(0, 256, (40, 50, 3))
            keras.utils.save_img(tmp_path / "photos" / label / f"{index}.png", image, scale=False)
    backbone = DeiTBackbone((32, 32, 3), 16, 1, 2, 8, 16, data_format="channels_last")
    DeiTImageClassifier(backbone, 5, preprocessor=DeiTImageConverter(32)).save_to_preset("tiny")
    short = ("recipe.batch_size_for(len(training)), recipe.epochs_for(len(training))", "4, 1")
    names = run(
        "fine_tune.md",
        ("deit_tiny_distilled_patch16_224", "tiny"),
        short,
        ("(256, 256)", "(40, 40)"),
    )
    assert np.isfinite(names["classifier"].history.history["val_loss"]).all()
    classifier = DeiTImageClassifier.from_preset("my_classifier")
    assert classifier.labels == ["cat", "dog"]
    assert classifier.predict(rng.integers(0, 256, (2, 40, 50, 3)), verbose=0).shape == (2, 2)


def test_troubleshooting(capsys):
    names = run("troubleshooting.md")
    assert capsys.readouterr().out.endswith("(2, 4, 6, 6)\n")
    assert names["found"]["outputs"].shape == (2, 10)
