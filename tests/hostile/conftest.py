import json
import pathlib
import shutil

import pytest

from keras_deit.models import DeiTImageClassifier
from tests.helpers import sign, tiny_classifier

SAVED = pathlib.Path(__file__).parents[1] / "saved"


@pytest.fixture(scope="session")
def saved_once(tmp_path_factory):
    directory = tmp_path_factory.mktemp("saved") / "preset"
    tiny_classifier().save_to_preset(directory)
    return directory


@pytest.fixture
def preset(saved_once, tmp_path):
    return pathlib.Path(shutil.copytree(saved_once, tmp_path / "preset"))


@pytest.fixture
def old_preset(tmp_path):
    """A preset of version 0.1, whose weights are HDF5."""
    shutil.copytree(SAVED / "v0.1.0" / "preset", tmp_path / "old")
    return tmp_path / "old"


@pytest.fixture
def secret(tmp_path):
    """A file that no preset may read."""
    (tmp_path / "secret").write_text("secret")
    return tmp_path / "secret"


def plant(preset, name, value, *keys):
    """Puts a value into a JSON file of a preset, and signs the file as an attacker would."""
    content = json.loads((preset / name).read_text())
    inner = content
    for key in keys[:-1]:
        inner = inner[key]
    if keys:
        inner[keys[-1]] = value
    else:
        content = value
    (preset / name).write_text(json.dumps(content))
    sign(preset)


def refusal(preset, **overrides):
    """What a user reads."""
    with pytest.raises(ValueError) as caught:
        DeiTImageClassifier.from_preset(preset, **overrides)
    return str(caught.value)
