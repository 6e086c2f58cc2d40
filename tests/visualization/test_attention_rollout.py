import keras
import numpy as np
import pytest

from keras_deit.visualization import attention_rollout
from tests.helpers import images, numpy, raises, randomize, tiny_backbone

pytestmark = pytest.mark.backend


def scores_of(rng, blocks=3, batch=2, heads=4, tokens=8):
    logits = rng.normal(size=(blocks, batch, heads, tokens, tokens))
    return np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)


def test_is_the_product_over_blocks_of_attention_with_the_residual(rng):
    """The formula of Abnar & Zuidema, in loops over samples and blocks."""
    scores = scores_of(rng)
    found = attention_rollout(list(scores), num_prefix_tokens=2, grid_size=(2, 3))
    assert found.shape == (2, 2, 3)
    for sample in range(2):
        rollout = np.eye(8)
        for block in range(3):
            attention = 0.5 * sum(
                scores[block, sample, head] for head in range(4)
            ) / 4 + 0.5 * np.eye(8)
            rollout = attention @ rollout
        np.testing.assert_allclose(found[sample].ravel(), rollout[0, 2:], atol=1e-12)


def test_equals_the_rollout_of_deit_tf(rng):
    """The rule of `classification.ipynb` in sayakpaul/deit-tf at 79cc91d: one image in float32, one
    prefix token.
    """
    scores = scores_of(rng, batch=1, tokens=10).astype("float32")
    attention = scores[:, 0].mean(axis=1)
    attention = attention + np.eye(10, dtype="float32")
    attention = attention / attention.sum(axis=-1)[..., None]
    joint = attention[0]
    for block in attention[1:]:
        joint = block @ joint
    np.testing.assert_allclose(
        attention_rollout(list(scores), 1, (3, 3))[0], joint[0, 1:].reshape(3, 3), atol=1e-6
    )


@pytest.mark.parametrize("fusion", ["mean", "max", "min"])
@pytest.mark.parametrize("ratio", [0.0, 0.9])
@pytest.mark.parametrize("token", ["class", "distillation"])
def test_fusion_of_heads_and_discarding_of_the_smallest(fusion, ratio, token, rng):
    scores = scores_of(rng)
    found = attention_rollout(
        list(scores), 2, (2, 3), head_fusion=fusion, discard_ratio=ratio, token=token
    )
    for sample in range(2):
        rollout = np.eye(8)
        for block in scores[:, sample]:
            fused = [
                [getattr(np, fusion)([block[head, i, j] for head in range(4)]) for j in range(8)]
                for i in range(8)
            ]
            threshold = sorted(np.ravel(fused))[int(ratio * 64)]
            kept = np.where(np.array(fused) < threshold, 0, fused) + np.eye(8)
            rollout = kept / kept.sum(axis=1, keepdims=True) @ rollout
        np.testing.assert_allclose(
            found[sample].ravel(), rollout[["class", "distillation"].index(token), 2:], atol=1e-12
        )


def test_shares_sum_to_at_most_one(rng):
    rollout = attention_rollout(list(scores_of(rng)), num_prefix_tokens=1, grid_size=(7, 1))
    assert (rollout >= 0).all()
    assert (rollout.sum(axis=(1, 2)) < 1).all()


@pytest.mark.parametrize("distilled", [False, True])
def test_takes_the_scores_of_a_backbone(distilled, rng):
    backbone = randomize(tiny_backbone(use_distillation_token=distilled), rng)
    scores = keras.Model(backbone.input, backbone.attention_scores)(images(rng))
    rollout = attention_rollout(scores, backbone.num_prefix_tokens, backbone.grid_size)
    assert rollout.shape == (4, 3, 4)
    in_order = [numpy(scores[f"block_{i}"]) for i in range(3)]
    np.testing.assert_array_equal(
        rollout, attention_rollout(in_order, backbone.num_prefix_tokens, (3, 4))
    )


def test_a_dict_is_read_in_the_order_of_the_blocks_not_of_its_keys(rng):
    """JAX sorts the keys of a dict that a model returns, so block_10 comes before block_2."""
    scores = scores_of(rng, blocks=12)
    named = {f"block_{i}": scores[i] for i in range(12)}
    by_key = dict(sorted(named.items()))
    assert list(by_key) != list(named)
    np.testing.assert_array_equal(
        attention_rollout(by_key, 2, (2, 3)), attention_rollout(list(scores), 2, (2, 3))
    )


def test_errors(rng):
    with raises(
        "The scores of each block must have the shape (batch, num_heads, 7, 7), for 1 prefix "
        "tokens and 2 x 3 patches. Use the `num_prefix_tokens` and `grid_size` of the backbone, "
        "and one with `num_merged_tokens=0` and `keep_rate=1.0`: merged and selected tokens have no "
        "place in the image. Received: "
        "scores of shapes [(2, 4, 8, 8)]"
    ):
        attention_rollout(list(scores_of(rng, blocks=1)), 1, (2, 3))
    with raises(
        "The scores of each block must have the shape (batch, num_heads, 7, 7), for 1 prefix "
        "tokens and 2 x 3 patches. Use the `num_prefix_tokens` and `grid_size` of the backbone, "
        "and one with `num_merged_tokens=0` and `keep_rate=1.0`: merged and selected tokens have no "
        "place in the image. Received: "
        "scores of shapes []"
    ):
        attention_rollout({}, 1, (2, 3))

    with raises(
        "`scores` must have one entry for each block, ['block_0']. Pass the scores of all blocks, "
        "or a list in the order of the blocks. Received: ['block_2']"
    ):
        attention_rollout({"block_2": scores_of(rng)[0]}, 2, (2, 3))
    with raises("`head_fusion` must be one of 'mean', 'max', 'min'. Received: head_fusion='sum'"):
        attention_rollout(list(scores_of(rng)), 2, (2, 3), head_fusion="sum")
    with raises(
        "`discard_ratio` must be a probability in [0, 1); use 0.0 to switch it off. Received: "
        "discard_ratio=1"
    ):
        attention_rollout(list(scores_of(rng)), 2, (2, 3), discard_ratio=1)
    with raises(
        'The model has no distillation token. Use `token="class"`. Received: '
        "token='distillation', num_prefix_tokens=1, num_register_tokens=0"
    ):
        attention_rollout(list(scores_of(rng)), 1, (7, 1), token="distillation")
