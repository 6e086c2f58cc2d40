import pytest

from keras_deit.presets import catalog


@pytest.fixture
def small_catalog(monkeypatch):
    for size in ("tiny", "small"):
        monkeypatch.setitem(catalog.SIZES, size, (2, 2, 8))
