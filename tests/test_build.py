"""`python -m build`: what the wheel and the source distribution hold, and that both install."""

import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FOLDERS = (".ci", "benchmarks", "docs", "examples", "keras_deit", "tests", "tools")
# What working in the repository leaves behind.
PRODUCTS = (
    "keras_deit/__pycache__/a.pyc",
    "tests/__pycache__/a.pyc",
    "docs/api/keras_deit.layers.rst",
)
pytestmark = [pytest.mark.process, pytest.mark.slow]


def files_in(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of the repository's own files, with products of work among them."""
    source = tmp_path_factory.mktemp("source")
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", "api", "_build")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, source / folder, ignore=ignored)
    for file in ROOT.iterdir():
        if file.suffix in (".cfg", ".cff", ".in", ".md", ".toml") or file.name == "LICENSE":
            shutil.copy(file, source)
    return source


@pytest.fixture(scope="module")
def built(source, tmp_path_factory):
    """The files of the repository, the wheel and the source distribution."""
    own = files_in(source)
    for product in PRODUCTS:
        (source / product).parent.mkdir(parents=True, exist_ok=True)
        (source / product).write_text("")
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--outdir", folder, source]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = folder.glob("*.whl")
    (sdist,) = folder.glob("*.tar.gz")
    return own, wheel, sdist


def test_the_wheel_holds_the_package_and_its_license(built):
    own, wheel, _ = built
    names = set(zipfile.ZipFile(wheel).namelist())
    package = {name for name in names if ".dist-info/" not in name}
    assert package == {name for name in own if name.startswith("keras_deit/")}
    assert {"keras_deit/py.typed", "keras_deit/assets/imagenet_labels.txt"} <= package
    assert sum(name.endswith(".dist-info/licenses/LICENSE") for name in names) == 1


def test_the_source_distribution_holds_the_repository(built):
    own, _, sdist = built
    with tarfile.open(sdist) as file:
        members = {member.name.partition("/")[2] for member in file if member.isfile()}
    metadata = {name for name in members if ".egg-info/" in name} | {"PKG-INFO"}
    assert members - metadata == own


LOAD = """
import numpy as np
import keras_deit

print(keras_deit.__file__)
classifier = keras_deit.models.DeiTImageClassifier.from_preset(
    "deit_nano_distilled_patch4_32_digits"
)
print(classifier.predict(np.zeros((1, 8, 8, 1), "uint8"), verbose=0).shape)
"""


@pytest.mark.parametrize("kind", [1, 2], ids=["wheel", "source distribution"])
def test_installed_it_loads_the_model_that_ships(kind, built, tmp_path):
    """In a folder of its own, ahead of this environment, which has the dependencies."""
    installed = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", installed]
    subprocess.run([*pip, built[kind]], check=True)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LOAD],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    file, shape = done.stdout.splitlines()
    assert pathlib.Path(file) == installed / "keras_deit" / "__init__.py"
    assert shape == "(1, 10)"
