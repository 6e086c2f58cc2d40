"""Every test runs in a step of .ci/run, and the README's command says which ones it leaves out."""

import configparser
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SETTINGS = configparser.ConfigParser()
SETTINGS.read(ROOT / "setup.cfg", encoding="utf-8")
PYTEST = SETTINGS["tool:pytest"]
MARKERS = [line.partition(":")[0] for line in PYTEST["markers"].strip().splitlines()]
# Files that JAX and PyTorch need not repeat, in folders whose other files depend on the backend.
ON_TENSORFLOW_ALONE = {
    "models/test_freezing.py",
}


def chosen_by_ci():
    """The markers that .ci/run chooses, without those that an expression leaves out."""
    expressions = re.findall(r"-m (\"[^\"]*\"|\w+)", (ROOT / ".ci" / "run").read_text())
    return {
        name
        for expression in expressions
        for name in re.findall(r"\w+", expression.partition(" and not ")[0])
        if name != "or"
    }


@pytest.mark.parametrize("marker", MARKERS)
def test_each_marker_has_a_step(marker):
    # Published weights are downloaded by hand, not for every change.
    assert (marker in chosen_by_ci()) == (marker != "network")


@pytest.mark.parametrize("marker", MARKERS)
def test_pytest_alone_leaves_out_what_is_slow_or_needs_more(marker):
    left_out = re.search(r'-m "not \((.*)\)"', PYTEST["addopts"])[1].split(" or ")
    assert (marker in left_out) == (marker != "backend")


@pytest.mark.parametrize("folder", ["layers", "models"])
def test_layers_and_models_are_tested_on_each_backend(folder):
    for file in sorted((ROOT / "tests" / folder).glob("test_*.py")):
        name = f"{folder}/{file.name}"
        marked = re.search(r"^pytestmark = .*?mark\.backend", file.read_text(), re.M | re.S)
        assert bool(marked) == (name not in ON_TENSORFLOW_ALONE), name
