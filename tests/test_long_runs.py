"""Memory in processes that load, predict and train many times."""

import contextlib
import gc
import json
import logging
import sys
import weakref

import numpy as np
import pytest

from keras_deit.models import DeiTImageClassifier
from tests.conftest import BACKEND
from tests.pages import ROOT
from tests.scripts import load_script, run_script

pytestmark = pytest.mark.backend
PRESET = "deit_nano_distilled_patch4_32_digits"
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture(scope="module")
def tool():
    return load_script("tools/memory_over_time.py")


@pytest.mark.slow
def test_nothing_keeps_a_model_that_is_no_longer_used():
    images, labels = np.zeros((4, 8, 8, 1), "uint8"), np.arange(4)
    alive = []
    for used in (False, True):
        classifier = DeiTImageClassifier.from_preset(PRESET)
        if used:
            classifier.compile()
            classifier.fit(images, labels, verbose=0)
            classifier.predict(images, verbose=0)
        alive += [weakref.ref(classifier), weakref.ref(classifier.variables[0])]
    del classifier
    gc.collect()
    assert [reference() for reference in alive] == [None] * 4


@pytest.mark.slow
@on_linux
def test_loading_many_times_takes_less_than_a_model_each(tool):
    """A model of this size takes 808 KiB for its weights alone. On TensorFlow, 212 KiB of each
    remained when its seeds were numbered.
    """
    points = tool.measure(tool.load, 60)
    assert [steps for steps, _ in points] == list(range(3, 61, 3))
    assert tool.growth(points) < 150


def test_growth_leaves_the_warm_up_out(tool):
    points = [(step, 100.0 + max(10 - step, 0) + step / 1024) for step in range(5, 105, 5)]
    assert tool.growth(points) == pytest.approx(1.0)


@on_linux
def test_the_table_of_every_backend_is_written(tool, tmp_path):
    page, output = tmp_path / "page.md", tmp_path / "out.json"
    page.write_text("<!-- long_runs -->\n<!-- end of long_runs -->\n")
    other = "jax" if BACKEND == "torch" else "torch"
    known = {"load": [[step, 50.0] for step in range(1, 21)]}
    output.write_text(json.dumps({other: known}))
    run_script(tool, only="load", loads=20, page=page, output=output)
    written = json.loads(output.read_text())
    assert written[other] == known
    assert [steps for steps, _ in written[BACKEND]["load"]] == list(range(1, 21))
    *_, last = [line for line in page.read_text().splitlines() if "from_preset` |" in line]
    assert last.startswith("| 20 `from_preset` |")
    assert "0.0 KiB each (50 to 50 MiB)" in last


def test_the_page_shows_the_measured_figures(tool):
    results = json.loads((ROOT / "docs" / "long_runs.json").read_text())
    assert set(results) == set(tool.BACKENDS)
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    assert f"\n{tool.table(results)}\n" in page


@pytest.mark.skipif(BACKEND != "tensorflow", reason="of TensorFlow")
@pytest.mark.slow
def test_calling_models_in_a_loop_traces_nothing():
    """As docs/reliability.md says: `predict` of the fifth model prints a warning."""
    warnings, images = [], np.zeros((2, 8, 8, 1), "uint8")

    class Collect(logging.Handler):
        def emit(self, record):
            warnings.append(record.getMessage())

    logger, handler = logging.getLogger("tensorflow"), Collect()
    logger.addHandler(handler)
    with contextlib.closing(handler):
        for _ in range(8):
            classifier = DeiTImageClassifier.from_preset(PRESET)
            classifier(classifier.preprocessor(images))
    logger.removeHandler(handler)
    assert not [text for text in warnings if "retracing" in text]
