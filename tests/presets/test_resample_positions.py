import keras
import numpy as np
import pytest
from PIL import Image

from keras_deit.presets.adaptation import resample_positions
from keras_deit.resampling import resample


@pytest.mark.parametrize("num_prefix_tokens", [0, 1, 2])
def test_the_same_grid_is_the_identity(num_prefix_tokens, rng):
    positions = rng.normal(size=(num_prefix_tokens + 6, 4)).astype("float32")
    assert resample_positions(positions, num_prefix_tokens, (2, 3), (2, 3)) is positions


@pytest.mark.parametrize("num_prefix_tokens", [0, 1, 2])
@pytest.mark.parametrize("new_grid", [(5, 7), (2, 2), (8, 3), (3, 4)])
def test_patches_are_resampled_bicubically_and_prefix_tokens_kept(num_prefix_tokens, new_grid, rng):
    grid = (4, 3)
    positions = rng.normal(size=(num_prefix_tokens + 12, 5)).astype("float32")
    found = resample_positions(positions, num_prefix_tokens, grid, new_grid)
    assert found.dtype == positions.dtype
    assert found.shape == (num_prefix_tokens + new_grid[0] * new_grid[1], 5)
    np.testing.assert_array_equal(found[:num_prefix_tokens], positions[:num_prefix_tokens])
    # Pillow's bicubic filter on float images is the antialiased one of the same family.
    for channel in range(5):
        image = Image.fromarray(positions[num_prefix_tokens:, channel].reshape(grid))
        expected = np.asarray(image.resize(new_grid[::-1], Image.BICUBIC))
        np.testing.assert_allclose(
            found[num_prefix_tokens:, channel].reshape(new_grid), expected, atol=1e-5
        )


def test_a_grid_of_the_same_number_of_patches_is_not_the_same_grid(rng):
    positions = rng.normal(size=(12, 4)).astype("float32")
    assert not np.allclose(resample_positions(positions, 0, (3, 4), (4, 3)), positions)


@pytest.mark.backend
@pytest.mark.parametrize("new_grid", [(5, 7), (2, 2), (8, 3), (4, 3)])
def test_a_model_and_a_preset_resample_alike(new_grid, rng):
    positions = rng.normal(size=(12, 5)).astype("float32")
    in_a_model = keras.ops.convert_to_numpy(resample(positions, (4, 3), new_grid))
    loaded = resample_positions(positions, 0, (4, 3), new_grid)
    np.testing.assert_allclose(in_a_model, loaded, atol=1e-6)
