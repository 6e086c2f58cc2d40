import gc
import os

from tests.hub_server import HubServer

# The client of the Hugging Face Hub reads its environment when Keras imports it.
HUB = HubServer()
os.environ.update(
    HF_ENDPOINT=HUB.url,
    HF_HUB_DISABLE_XET="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    HF_HUB_DOWNLOAD_TIMEOUT="1",
    HF_HUB_ETAG_TIMEOUT="1",
)

# Tests compile much and compute little. Fusion and layout stay as they are.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import keras  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

BACKEND = keras.backend.backend()


def pytest_addoption(parser):
    parser.addoption(
        "--fuzz-cases",
        type=int,
        help="cases of each test in tests/fuzz. By default 200, the same in every run.",
    )


@pytest.fixture(autouse=True, scope="session")
def imports_are_not_collected():
    """Loading a preset collects garbage: 0.3 s, nearly all of it spent on the objects of Keras'
    and TensorFlow's modules.
    """
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def fresh_state():
    """Every test starts from the same seed, float32 and channels_last, and leaves them so."""
    keras.utils.set_random_seed(1)
    keras.config.set_dtype_policy("float32")
    yield
    keras.config.set_dtype_policy("float32")
    keras.config.set_image_data_format("channels_last")


@pytest.fixture
def rng():
    return np.random.default_rng(1)


@pytest.fixture(scope="session")
def photographs():
    """Two photographs, (427, 640, 3) uint8."""
    from sklearn.datasets import load_sample_images

    return load_sample_images().images


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty hub and an empty cache."""
    from huggingface_hub import constants

    HUB.clear()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return HUB
