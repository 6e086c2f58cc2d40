"""Runs the Python of Markdown pages as a reader would: top to bottom, in one folder."""

import pathlib
import re
import sys

import keras
import numpy as np
import pytest
from safetensors.numpy import save

from keras_deit.models import DeiTImageClassifier
from keras_deit.presets import catalog, timm_tensors

ROOT = pathlib.Path(__file__).parent.parent
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


def blocks(page):
    """[(number of the line before it, code)] of a page, given as a path from the root."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [(text[: found.start()].count("\n") + 1, found[1]) for found in BLOCK.finditer(text)]


def run(page, code):
    """Runs the blocks of a page, which share their names, and returns these.

    A line `print(value)  # (2, 10): words` promises what it prints.

    Args:
        page: path from the root, for tracebacks.
        code: what `blocks` returns, or some of it.
    """
    lines = {}

    def checked_print(*values):
        printed = " ".join(map(str, values))
        line = sys._getframe(1).f_lineno
        _, has_promise, promise = lines[line].partition("  # ")
        if has_promise:
            assert promise == printed or promise.startswith(f"{printed}: "), (
                f"{page}, line {line} promises {promise!r}. Printed: {printed!r}"
            )
        print(printed)

    names = {"__name__": "__main__", "print": checked_print}
    for start, block in code:
        lines.update(enumerate(block.split("\n"), start=start + 1))
        # Empty lines in front: a traceback shows the lines of the page
        exec(compile("\n" * start + block, ROOT / page, "exec"), names)
    return names


def replaced(page, code, replacements):
    """The blocks with (old, new) texts replaced, each of which must occur."""
    for old, new in replacements:
        assert any(old in block for _, block in code), f"{page} does not have {old!r}"
        code = [(line, block.replace(old, new)) for line, block in code]
    return code


def published_in(code):
    """The built-in names and repositories that a page loads from the hub."""
    handles = {handle for _, block in code for handle in re.findall(r'"([\w/.:-]+)"', block)}
    return [handle for handle in handles if catalog.published(handle) is not None]


@pytest.fixture(scope="session")
def random_weights():
    """name -> the published architecture of this name with random weights, as a file's bytes."""
    known = {}

    def weights(name):
        if name not in known:
            classifier = DeiTImageClassifier.from_preset(name, load_weights=False)
            known[name] = save(timm_tensors(classifier))
        return known[name]

    return weights


@pytest.fixture
def reader(tmp_path, monkeypatch, hub, random_weights, photographs):
    """Runs a page in a folder with `photo.jpg`, and `photos` of cats and dogs, beside a hub with
    random weights.
    """
    monkeypatch.chdir(tmp_path)
    keras.utils.save_img(tmp_path / "photo.jpg", photographs[0], scale=False)
    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for index in range(10):
            image = rng.integers(0, 256, (40, 50, 3))
            keras.utils.save_img(tmp_path / "photos" / label / f"{index}.jpg", image, scale=False)
    if keras.backend.backend() == "tensorflow":
        # XLA compiles longer than these pages take.
        monkeypatch.setattr(
            keras.Model, "jit_compile", property(lambda self: False, lambda self, value: None)
        )

    def read(page, code=None):
        code = blocks(page) if code is None else code
        for handle in published_in(code):
            row = catalog.published(handle)
            for repository in (row.timm_repository, row.transformers_repository):
                hub.files[(repository, "model.safetensors")] = random_weights(row.name)
        return run(page, code)

    return read
