"""Another patch size on load: the identities of the FlexiViT paper, section 3.4."""

import keras
import numpy as np
import pytest

from keras_deit.models import DeiTBackbone, DeiTImageClassifier
from keras_deit.presets.adaptation import resize_patches
from tests.helpers import images, numpy, randomize, tiny_backbone, tiny_classifier

pytestmark = pytest.mark.backend


def tokens(patches, kernel):
    return patches.reshape(len(patches), -1) @ kernel


def test_the_same_size_is_the_same_kernel(rng):
    kernel = rng.normal(size=(4 * 8 * 3, 5)).astype("float32")
    assert resize_patches(kernel, (4, 8), (4, 8)) is kernel


@pytest.mark.parametrize("new_size", [(8, 16), (5, 8), (4, 11), (30, 30)])
def test_a_larger_patch_gives_the_same_token_when_the_image_is_enlarged(new_size, rng):
    kernel = rng.normal(size=(4 * 8 * 3, 5)).astype("float32")
    patches = rng.normal(size=(2, 4, 8, 3)).astype("float32")
    enlarged = keras.ops.image.resize(
        patches, new_size, interpolation="bilinear", data_format="channels_last"
    )
    np.testing.assert_allclose(
        tokens(numpy(enlarged), resize_patches(kernel, (4, 8), new_size)),
        tokens(patches, kernel),
        atol=1e-4,
    )


def test_a_smaller_patch_is_as_close_as_possible(rng):
    """For patches of white noise: the error of the token, kernel - resize.T @ found, is orthogonal
    to everything that the resize can see.
    """
    kernel = rng.normal(size=(8 * 8, 3))
    found = resize_patches(kernel, (8, 8), (4, 5))
    pixels = np.eye(64, dtype="float32").reshape(64, 8, 8, 1)
    resized = numpy(
        keras.ops.image.resize(
            pixels, (4, 5), interpolation="bilinear", data_format="channels_last"
        )
    )
    resize = resized.reshape(64, 20).T
    np.testing.assert_allclose(resize @ (kernel - resize.T @ found), 0, atol=1e-5)
    assert np.abs(kernel - resize.T @ found).max() > 0.1  # which no kernel of 20 pixels can avoid


@pytest.mark.parametrize("patch_size", [(2, 4), 4, (12, 16)])
def test_a_preset_loads_with_another_patch_size(patch_size, rng, tmp_path):
    classifier = randomize(tiny_classifier(), rng)
    classifier.save_to_preset(tmp_path / "preset")
    loaded = DeiTImageClassifier.from_preset(tmp_path / "preset", patch_size=patch_size)
    rows, columns = loaded.backbone.patch_size
    assert loaded.backbone.grid_size == (12 // rows, 32 // columns)
    assert loaded.predict(images(rng, shape=(12, 32, 3)), verbose=0).shape == (4, 5)
    for found, saved in zip(loaded.weights, classifier.weights, strict=True):
        if "projection/kernel" not in saved.path and "positions" not in saved.path:
            np.testing.assert_array_equal(numpy(found), numpy(saved))


def test_twice_the_pixels_and_twice_the_patch_is_the_same_model(rng, tmp_path):
    backbone = randomize(tiny_backbone(), rng)
    backbone.save_to_preset(tmp_path / "preset")
    loaded = DeiTBackbone.from_preset(
        tmp_path / "preset", image_shape=(24, 64, 3), patch_size=(8, 16)
    )
    x = images(rng)
    # Each patch by itself, because a resize of the whole image mixes pixels of neighbours.
    patches = x.reshape(4, 3, 4, 4, 8, 3).swapaxes(2, 3).reshape(48, 4, 8, 3)
    large = numpy(
        keras.ops.image.resize(
            patches, (8, 16), interpolation="bilinear", data_format="channels_last"
        )
    )
    enlarged = large.reshape(4, 3, 4, 8, 16, 3).swapaxes(2, 3).reshape(4, 24, 64, 3)
    np.testing.assert_allclose(numpy(loaded(enlarged)), numpy(backbone(x)), atol=1e-4)


def test_a_patch_size_that_does_not_divide_the_image(tmp_path):
    tiny_backbone().save_to_preset(tmp_path / "preset")
    with pytest.raises(ValueError, match="`patch_size` must divide the image"):
        DeiTBackbone.from_preset(tmp_path / "preset", patch_size=5)


@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method:UserWarning")
def test_quantized_kernels_do_not_resize(tmp_path):
    backbone = tiny_backbone()
    backbone.quantize("int8")
    backbone.save_to_preset(tmp_path / "preset")
    with pytest.raises(ValueError, match="patch_embedding/projection/kernel is "):
        DeiTBackbone.from_preset(tmp_path / "preset", patch_size=4)
