"""Runs the Python of Markdown pages as a reader would: top to bottom, in one folder."""

import json
import os
import pathlib
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
from safetensors.numpy import save

from keras_deit.models import DeiTImageClassifier
from keras_deit.presets import catalog, timm_tensors, transformers_tensors
from tests.hub_layouts import deit_processor, transformers_config

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
def published_files():
    """handle -> {(repository, file): bytes} of a published model, with random weights."""
    known = {}

    def files(handle):
        if handle not in known:
            row = catalog.published(handle)
            classifier = DeiTImageClassifier.from_preset(row.name, load_weights=False)
            if handle.startswith("hf://facebook/"):
                known[handle] = _of_transformers(row, classifier)
            else:
                weights = save(timm_tensors(classifier))
                known[handle] = {(row.timm_repository, "model.safetensors"): weights}
        return known[handle]

    return files


def _of_transformers(row, classifier):
    config = transformers_config(
        "DeiTForImageClassificationWithTeacher",
        classifier.backbone,
        classifier.labels,
        image_size=row.image_size,
        patch_size=row.patch_size,
    )
    processor = deit_processor(
        crop_size={"height": 224, "width": 224}, size={"height": 256, "width": 256}
    )
    files = {
        "model.safetensors": save(transformers_tensors(classifier), {"format": "pt"}),
        "config.json": json.dumps(config).encode(),
        "preprocessor_config.json": json.dumps(processor).encode(),
    }
    return {(row.transformers_repository, name): content for name, content in files.items()}


ON_JAX = "# With KERAS_BACKEND=jax\n"


def run_on_jax(code, folder):
    """Runs a block in a process of its own, on JAX with two devices."""
    environment = {
        **os.environ,
        "KERAS_BACKEND": "jax",
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    }
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr


@pytest.fixture
def reader(tmp_path, monkeypatch, hub, published_files, photographs):
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
            hub.files.update(published_files(handle))
        for_jax = [block for _, block in code if block.startswith(ON_JAX)]
        if for_jax and keras.backend.backend() == "jax":
            for block in for_jax:
                run_on_jax(block, tmp_path)
            return {}
        return run(page, [part for part in code if part[1] not in for_jax])

    return read
