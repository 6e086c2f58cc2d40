"""The notebooks of examples/notebooks run from top to bottom in a kernel of their own."""

import pytest

from tests.pages import ROOT

NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))


def read(path):
    nbformat = pytest.importorskip("nbformat")
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    return book


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path, tmp_path, monkeypatch):
    client = pytest.importorskip("nbclient")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "3")
    book = read(path)
    client.NotebookClient(book, timeout=600, resources={"metadata": {"path": tmp_path}}).execute()


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_kept_without_outputs_and_installs_what_it_needs(path):
    book = read(path)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    assert '%pip install -q "keras_deit[' in code[0].source
    title, *_ = book.cells
    assert title.cell_type == "markdown" and title.source.startswith("# ")
