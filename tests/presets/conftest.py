import pytest

from keras_deit.presets import catalog
from tests.helpers import randomize, tiny_classifier


@pytest.fixture
def small_catalog(monkeypatch):
    for size in ("tiny", "small"):
        monkeypatch.setitem(catalog.SIZES, size, (2, 2, 8))


@pytest.fixture
def saved(rng, tmp_path):
    """A classifier and its directory."""
    classifier = randomize(tiny_classifier({"drop_path_rate": 0.1}), rng)
    classifier.save_to_preset(tmp_path / "preset")
    return classifier, tmp_path / "preset"
