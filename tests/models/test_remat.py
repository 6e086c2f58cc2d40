"""`remat=True` computes again what it would have kept: the same numbers, for less memory."""

import keras
import numpy as np
import pytest

from tests.helpers import tiny_classifier

pytestmark = pytest.mark.backend

RATES = {"dropout_rate": 0.1, "attention_dropout_rate": 0.1, "drop_path_rate": 0.5}


def trained(remat, **backbone):
    keras.utils.set_random_seed(0)
    model = tiny_classifier({**RATES, "remat": remat, **backbone}, preprocessor=None)
    model.compile(
        keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    images = np.random.default_rng(0).normal(size=(8, *model.input.shape[1:])).astype("float32")
    model.fit(images, np.arange(8) % 5, epochs=3, batch_size=4, shuffle=False, verbose=0)
    return model.get_weights()


@pytest.mark.slow
@pytest.mark.parametrize("backbone", [{}, {"num_merged_tokens": 1}, {"keep_rate": 0.5}])
def test_weights_are_those_without_it_dropout_included(backbone):
    """`keras.RematScope` fails on keyword arguments on TensorFlow and JAX, and draws other masks
    the second time on PyTorch.
    """
    for weight, expected in zip(trained(True, **backbone), trained(False, **backbone), strict=True):
        np.testing.assert_allclose(weight, expected, atol=1e-6)


def kept_bytes(remat):
    """What the way forward keeps for the way back, on JAX."""
    import jax

    model = tiny_classifier({**RATES, "remat": remat, "num_layers": 6}, preprocessor=None)
    trainable, others = (
        [variable.value for variable in kind]
        for kind in (model.trainable_variables, model.non_trainable_variables)
    )
    images = np.zeros((4, *model.input.shape[1:]), "float32")
    _, gradient = jax.vjp(
        lambda trainable: model.stateless_call(trainable, others, images, training=True)[0],
        trainable,
    )
    return sum(array.nbytes for array in jax.tree.leaves(gradient))


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="JAX can say what it keeps")
def test_less_is_kept_for_the_way_back():
    assert kept_bytes(True) < 0.4 * kept_bytes(False)
