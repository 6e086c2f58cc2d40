import keras
import numpy as np
import pytest

from keras_deit.visualization import attention_maps, attention_rollout
from tests.helpers import images, numpy, raises, randomize, tiny_backbone

pytestmark = pytest.mark.backend


@pytest.mark.parametrize("distilled", [False, True])
def test_each_head_of_a_block(distilled, rng):
    backbone = randomize(tiny_backbone(use_distillation_token=distilled), rng)
    scores = keras.Model(backbone.input, backbone.attention_scores)(images(rng))["block_1"]
    for index, token in enumerate(["class", "distillation"][: backbone.num_prefix_tokens]):
        maps = attention_maps(scores, backbone.num_prefix_tokens, backbone.grid_size, token=token)
        assert maps.shape == (4, 2, 3, 4)
        for row in range(3):
            for column in range(4):
                patch = backbone.num_prefix_tokens + row * 4 + column
                np.testing.assert_array_equal(
                    maps[..., row, column], numpy(scores)[:, :, index, patch]
                )


def test_the_mean_of_the_patches_for_models_without_a_class_token(rng):
    backbone = randomize(tiny_backbone(use_class_token=False, num_register_tokens=2), rng)
    scores = keras.Model(backbone.input, backbone.attention_scores)(images(rng))
    maps = attention_maps(scores["block_1"], 2, backbone.grid_size, token="mean")
    expected = numpy(scores["block_1"])[:, :, 2:, 2:].mean(axis=2)
    np.testing.assert_allclose(maps.reshape(4, 2, 12), expected, atol=1e-6)
    assert attention_rollout(scores, 2, backbone.grid_size, token="mean").shape == (4, 3, 4)
    for function in (attention_maps, attention_rollout):  # a register is no class token
        with raises(
            "The model has no class token. Use `token=\"mean\"`. Received: token='class', "
            "num_prefix_tokens=2, num_register_tokens=2"
        ):
            function(
                scores["block_1"] if function is attention_maps else scores,
                2,
                backbone.grid_size,
                num_register_tokens=2,
            )


def test_errors(rng):
    scores = rng.random((2, 4, 7, 7))
    with raises(
        'The model has no distillation token. Use `token="class"`. Received: '
        "token='distillation', num_prefix_tokens=1, num_register_tokens=0"
    ):
        attention_maps(scores, 1, (2, 3), token="distillation")
    with raises(
        "The model has no class token. Use `token=\"mean\"`. Received: token='class', "
        "num_prefix_tokens=0, num_register_tokens=0"
    ):
        attention_maps(scores, 0, (7, 1))
    with raises("`token` must be one of 'class', 'distillation', 'mean'. Received: token='cls'"):
        attention_maps(scores, 1, (2, 3), token="cls")
    with raises(
        "The scores of each block must have the shape (batch, num_heads, 8, 8), for 2 prefix "
        "tokens and 2 x 3 patches. Use the `num_prefix_tokens` and `grid_size` of the backbone, "
        "and one with `num_merged_tokens=0` and `keep_rate=1.0`: merged and selected tokens have no "
        "place in the image. Received: "
        "scores of shapes [(2, 4, 7, 7)]"
    ):
        attention_maps(scores, 2, (2, 3))
