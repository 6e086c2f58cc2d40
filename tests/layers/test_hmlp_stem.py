import keras
import numpy as np
import pytest

from keras_deit.layers import HMLPStem, PatchEmbedding, target_platform
from tests import witness
from tests.conftest import BACKEND
from tests.helpers import numpy, raises, randomize

pytestmark = pytest.mark.backend

DIM = 8


def built(patch_size, rng):
    stem = HMLPStem(DIM, patch_size)
    stem.build((None, None, None, 3))
    return randomize(stem, rng)


def normalized(x, weights, statistics=None):
    mean, variance = statistics or (weights["moving_mean"], weights["moving_variance"])
    return (x - mean) / np.sqrt(variance + 1e-5) * weights["gamma"] + weights["beta"]


def token(patch, weights):
    """The token of one patch (side, side, channels), in float64."""
    x, step = patch, 0
    while len(x) > 1 or step == 0:
        side = 4 if step == 0 else 2
        projected = [
            [
                x[row : row + side, column : column + side].ravel()
                @ weights[f"projection_{step}/kernel"]
                for column in range(0, len(x), side)
            ]
            for row in range(0, len(x), side)
        ]
        x = normalized(np.array(projected), witness.under(weights, f"norm_{step}"))
        step += 1
        if len(x) > 1:
            x = witness.gelu(x)
    return x[0, 0]


@pytest.mark.parametrize("patch_size", [8, 16, 32])
def test_equals_the_formula_patch_by_patch(patch_size, rng):
    """So it mixes no patches, either."""
    stem = built(patch_size, rng)
    assert len(stem.sublayers) == {8: 4, 16: 6, 32: 8}[patch_size]
    images = rng.normal(size=(2, 2 * patch_size, 3 * patch_size, 3)).astype("float32")
    weights = witness.weights_of(stem)
    expected = [
        [
            token(image[row : row + patch_size, column : column + patch_size], weights)
            for row in range(0, 2 * patch_size, patch_size)
            for column in range(0, 3 * patch_size, patch_size)
        ]
        for image in images.astype("float64")
    ]
    np.testing.assert_allclose(numpy(stem(images)), expected, atol=1e-5)


def test_training_uses_the_statistics_of_the_batch(rng):
    """The values of one step over the batch have the mean `beta` and the deviation `gamma`."""
    stem = built(16, rng)
    images = rng.normal(size=(4, 32, 48, 3)).astype("float32")
    before = numpy(stem.norm_0.moving_mean).copy()
    tokens = numpy(stem(images, training=True)).reshape(-1, DIM)
    np.testing.assert_allclose(tokens.mean(axis=0), numpy(stem.norm_2.beta), atol=1e-4)
    np.testing.assert_allclose(tokens.std(axis=0), abs(numpy(stem.norm_2.gamma)), rtol=1e-2)
    projected = witness.patch_embedding(
        images.astype("float64"),
        {"projection/kernel": numpy(stem.projection_0.kernel).astype("float64")},
        (4, 4),
    )
    np.testing.assert_allclose(
        numpy(stem.norm_0.moving_mean),
        0.9 * before + 0.1 * projected.mean(axis=(0, 1)),
        atol=1e-5,
    )


def test_channels_first_is_channels_last_transposed(rng):
    last = built(16, rng)
    first = HMLPStem(DIM, data_format="channels_first")
    first.build((None, 3, 32, 48))
    first.set_weights(last.get_weights())
    images = rng.normal(size=(2, 32, 48, 3)).astype("float32")
    np.testing.assert_array_equal(numpy(first(images.transpose(0, 3, 1, 2))), numpy(last(images)))


@pytest.mark.skipif(BACKEND != "jax", reason="other backends have one implementation")
@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_every_device_computes_the_same(platform, rng):
    stem = built(16, rng)
    images = rng.normal(size=(2, 32, 48, 3)).astype("float32")
    with target_platform(platform):
        found = numpy(stem(images))
    np.testing.assert_allclose(found, numpy(stem(images)), atol=1e-5)


def test_replaces_a_patch_embedding():
    for size in ((32, 48), (None, 48), (None, None)):
        images = keras.Input((*size, 3))
        assert HMLPStem(DIM, 16)(images).shape == PatchEmbedding(DIM, 16)(images).shape


def test_errors():
    with raises(
        "`hidden_dim` must be a multiple of 4: all steps but the last have a quarter of it. "
        "Received: hidden_dim=6"
    ):
        HMLPStem(6)
    for patch_size in (14, 4, "16", (16, 16), True, None):
        with raises(f"`patch_size` must be one of 8, 16, 32. Received: patch_size={patch_size!r}"):
            HMLPStem(DIM, patch_size)
    with raises(
        "`patch_size` must divide the image: height 225 is not a multiple of 16. Use 224 or 240, "
        "or resize first. Received: input shape (None, 225, 224, 3), "
        "data_format='channels_last', patch_size=(16, 16)"
    ):
        HMLPStem(DIM).build((None, 225, 224, 3))
    with raises(
        "`HMLPStem` takes a batch of images (rank 4). Add a batch axis to a single image. "
        "Received: input shape (16, 16, 3)"
    ):
        HMLPStem(DIM).build((16, 16, 3))
    with raises(
        "`HMLPStem` needs a known number of channels. Received: input shape (None, 16, 16, None), "
        "data_format='channels_last'"
    ):
        HMLPStem(DIM).build((None, 16, 16, None))
