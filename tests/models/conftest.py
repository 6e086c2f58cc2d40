import pytest

from tests.models.tiny import tiny_classifier


@pytest.fixture(scope="module")
def shared_classifier():
    """For inputs that are refused. They must leave it usable: on JAX an error inside a training
    step deletes the weights.
    """
    return tiny_classifier()
