import keras
import numpy as np
import pytest

BACKEND = keras.backend.backend()


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
