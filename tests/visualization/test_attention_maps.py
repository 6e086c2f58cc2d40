import keras
import numpy as np
import pytest

from keras_deit.visualization import attention_maps
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


def test_errors(rng):
    scores = rng.random((2, 4, 7, 7))
    with raises(
        'The model has no distillation token. Use `token="class"`. Received: '
        "token='distillation', num_prefix_tokens=1"
    ):
        attention_maps(scores, 1, (2, 3), token="distillation")
    with raises("`token` must be one of 'class', 'distillation'. Received: token='cls'"):
        attention_maps(scores, 1, (2, 3), token="cls")
    with raises(
        "The scores of each block must have the shape (batch, num_heads, 8, 8), for 2 prefix "
        "tokens and 2 x 3 patches. Use the `num_prefix_tokens` and `grid_size` of the backbone, "
        "and `num_merged_tokens=0`, because merged tokens have no place in the image. Received: "
        "scores of shapes [(2, 4, 7, 7)]"
    ):
        attention_maps(scores, 2, (2, 3))
