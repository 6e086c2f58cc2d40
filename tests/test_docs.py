"""The pages of docs/: their code runs as it stands, on less data, and the site builds."""

import numpy as np
import pytest

from keras_deit.models import DeiTImageClassifier
from tests.pages import ROOT, blocks, random_weights, reader, replaced  # noqa: F401

DOCS = ROOT / "docs"
PAGES = sorted(path.name for path in DOCS.glob("*.md"))
# Run by the tests of what they are about, which need more than a page can have
ELSEWHERE = {
    "export.md": "tests/tools/test_export_model.py",
    "keras_hub.md": "tests/examples/test_using.py",
}
# The packages that a page compares with
PEERS = {}
# What would take minutes
SHORTER = {
    "distil.md": [("slice(0, 1437)", "slice(0, 64)"), ("slice(1437, None)", "slice(1437, 1469)")],
}
CHECKS = {}


def check(page):
    def register(function):
        CHECKS[page] = function
        return function

    return register


def with_marks(page):
    marks = [pytest.mark.slow]
    if page in PEERS:
        marks.append(pytest.mark.peer)
    return pytest.param(page, marks=marks)


@pytest.mark.parametrize(
    "page", [with_marks(page) for page in PAGES if page not in ELSEWHERE and blocks(f"docs/{page}")]
)
def test_code_runs(page, reader):  # noqa: F811
    for package in PEERS.get(page, ()):
        pytest.importorskip(package)
    path = f"docs/{page}"
    names = reader(path, replaced(path, blocks(path), SHORTER.get(page, ())))
    CHECKS.get(page, lambda names: None)(names)


@check("distil.md")
def distil(names):
    losses = names["distiller"].history.history
    assert losses["class_loss"][-1] < losses["class_loss"][0]
    student = DeiTImageClassifier.from_preset("student")
    images = names["images"][:4]
    np.testing.assert_allclose(
        student.predict(images, verbose=0), names["student"].predict(images, verbose=0), atol=1e-5
    )
