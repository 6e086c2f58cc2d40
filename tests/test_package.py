"""The package as a whole: what its import costs, who may import whom."""

import ast
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

import keras_deit

ROOT = pathlib.Path(keras_deit.__file__).parent
# Who may name a backend: where tf.data and its datasets come from, and what PyTorch keeps outside
# Keras.
ALONE = {
    "require_tensorflow.py": "tensorflow",
    "tfds_images.py": "tensorflow",
    "checkpoint.py": "torch",
}
# What reads and writes safetensors for presets and checkpoints alike knows nothing of presets.
FOR_ALL = "keras_deit.presets.safetensors_file"
SOURCES = sorted(ROOT.rglob("*.py"))


def imports(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_direction_of_imports(file):
    forbidden = {
        "layers": (
            "keras_deit.models",
            "keras_deit.presets",
            "keras_deit.training",
            "keras_deit.visualization",
        ),
        "presets": (
            "keras_deit.models",
            "keras_deit.layers",
            "keras_deit.training",
            "keras_deit.visualization",
        ),
        "models": ("keras_deit.training", "keras_deit.visualization"),
        "training": ("keras_deit.models", "keras_deit.presets", "keras_deit.visualization"),
        "visualization": ("keras_deit.models", "keras_deit.presets", "keras_deit.training"),
    }.get(file.relative_to(ROOT).parts[0], ())
    alone = ALONE.get(file.name)
    for name in imports(file):
        others = {"keras.src", "keras_hub", "keras_cv", "tensorflow", "jax", "torch"} - {alone}
        assert not name.startswith(tuple(others)), f"{file} imports {name}"
        if not name.startswith(FOR_ALL):
            assert not name.startswith(forbidden), f"{file} imports {name}"


LONGEST_BODY = 60  # lines, without signature, docstring and what only passes an argument on
PASSES_AN_ARGUMENT_ON = re.compile(r"\s*(\w+=)?\w+,")


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_functions_are_short(file):
    text = file.read_text().splitlines()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            lines = text[body[0].lineno - 1 : body[-1].end_lineno] if body else []
            lines = sum(not PASSES_AN_ARGUMENT_ON.fullmatch(line) for line in lines)
            assert lines <= LONGEST_BODY, f"{file}: {node.name} has {lines} lines"


BACKEND_OR_DEVICE = re.compile(
    r"backend\.backend\(\)|\"(tensorflow|jax|torch|cpu|gpu|tpu|cuda)\"|list_devices"
)


@pytest.mark.parametrize(
    "file",
    sorted([*(ROOT / "layers").glob("*.py"), *(ROOT / "models").glob("*.py")]),
    ids=lambda file: file.name,
)
def test_what_depends_on_a_backend_or_device_stands_in_one_file(file):
    named = BACKEND_OR_DEVICE.findall(file.read_text())
    assert bool(named) == (file.name == "kernels.py")


def python(script, **environment):
    return subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT.parent), **environment},
        check=False,
    )


@pytest.mark.backend
@pytest.mark.process
def test_import_brings_no_other_backend_and_no_pictures():
    """A stand-in for JAX's Keras backend would be no test: this runs where that backend is
    installed, on it.
    """
    script = """
import sys
import keras
before = set(sys.modules)
import keras_deit
new = {name.split(".")[0] for name in set(sys.modules) - before}
print(sorted(new - {"keras_deit"}))
print([name for name in ("tensorflow", "jax", "torch") if name in sys.modules and name != keras.backend.backend()])
"""
    result = python(script)
    assert result.returncode == 0, result.stderr
    new, other_backends = result.stdout.splitlines()
    # What comes beyond Keras is small.
    assert set(ast.literal_eval(new)) <= {"absl", "keras_deit"} | set(sys.stdlib_module_names)
    if os.environ.get("KERAS_BACKEND") in ("jax", "torch"):
        assert "tensorflow" not in other_backends


def test_parity_is_measured_for_every_family_on_every_backend():
    families = json.loads((ROOT.parent / "docs" / "parity.json").read_text())["families"]
    assert len(families) >= 20
    for name, measured in families.items():
        assert set(measured) == {"title", "model", "tensorflow", "jax", "torch"}, name
        for backend in ("tensorflow", "jax", "torch"):
            assert {"scores", "tokens"} <= set(measured[backend])
            assert all(0.0 < difference <= 1e-4 for difference in measured[backend].values())


def test_parity_is_measured_for_every_preset_on_every_backend():
    parity = json.loads((ROOT.parent / "docs" / "parity.json").read_text())["architectures"]
    for name, row in keras_deit.models.DeiTImageClassifier.presets.items():
        if "top1" in row:
            measured = parity[name.removesuffix("_in21k")]
            assert measured["parameters"] == row["parameters"]
            assert set(measured["differences"]) == {"tensorflow", "jax", "torch"}
            for sizes in measured["differences"].values():
                assert len(sizes) == 2
                for outputs in sizes.values():
                    assert set(outputs) == {"logits", "attention_scores", "last_hidden_state"}
                    assert all(0.0 < difference <= 1e-4 for difference in outputs.values())
