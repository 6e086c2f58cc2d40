import numpy as np
import pytest

from keras_deit.models import DeiTBackbone
from keras_deit.visualization import patch_filters, position_similarity
from tests.helpers import numpy, randomize, tiny_backbone

pytestmark = pytest.mark.backend


def test_filters_are_the_directions_in_which_the_embedding_varies(rng):
    """The components of scikit-learn's PCA, up to their sign."""
    from sklearn.decomposition import PCA

    backbone = randomize(tiny_backbone(), rng)
    found = patch_filters(backbone)
    assert found.shape == (8, 4, 8, 3)
    kernel = numpy(backbone.patch_embedding.projection.kernel).T
    expected = PCA().fit(kernel.astype("float64")).components_
    # Eight filters minus their mean span seven dimensions, so the last component is arbitrary.
    for ours, theirs in zip(found[:7], expected):
        np.testing.assert_allclose(abs(ours.ravel() @ theirs), 1, atol=1e-6)


def test_filters_are_pictures_of_patches():
    """If the kernel is 0 in the right half of a patch, so is the strongest component."""
    backbone = tiny_backbone()
    kernel = np.random.default_rng(0).normal(size=(4, 8, 3, 8)).astype("float32")
    kernel[:, 4:] = 0
    backbone.patch_embedding.projection.kernel.assign(kernel.reshape(-1, 8))
    found = patch_filters(backbone)[0]
    assert np.abs(found[:, :4]).max() > 0.1
    np.testing.assert_allclose(found[:, 4:], 0, atol=1e-6)


@pytest.mark.parametrize(
    "overrides", [{}, {"use_distillation_token": True}, {"position_scope": "patches"}]
)
def test_similarity_is_the_cosine_of_two_positions(overrides, rng):
    backbone = randomize(tiny_backbone(**overrides), rng)
    found = position_similarity(backbone)
    assert found.shape == (3, 4, 3, 4)
    positions = numpy(backbone.token_position_embedding.positions)[-12:].reshape(3, 4, -1)
    a, b = positions[2, 1], positions[0, 3]
    np.testing.assert_allclose(found[2, 1, 0, 3], a @ b / np.sqrt(a @ a * (b @ b)), rtol=1e-5)
    np.testing.assert_allclose(found[1, 2, 1, 2], 1)


def test_the_digits_model_has_learnt_where_patches_are():
    """Training makes the positions of neighbours more similar than those of distant patches."""
    similarity = position_similarity(
        DeiTBackbone.from_preset("deit_nano_distilled_patch4_32_digits")
    )
    near = [similarity[i, j, i, j + 1] for i in range(8) for j in range(7)]
    far = [similarity[i, j, 7 - i, 7 - j] for i in range(8) for j in range(8)]
    assert np.mean(near) > np.mean(far) + 0.2
