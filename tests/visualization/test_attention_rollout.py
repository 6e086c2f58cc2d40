import keras
import numpy as np
import pytest

from keras_deit.visualization import attention_rollout, plot_rollouts
from tests.helpers import images, numpy, raises, randomize, tiny_backbone


def scores_of(rng, blocks=3, batch=2, heads=4, tokens=8):
    logits = rng.normal(size=(blocks, batch, heads, tokens, tokens))
    return np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)


def test_is_the_product_over_blocks_of_attention_with_the_residual(rng):
    """Sample by sample with loops, as Abnar & Zuidema write it."""
    scores = scores_of(rng)
    found = attention_rollout(list(scores), num_prefix_tokens=2, grid_size=(2, 3))
    assert found.shape == (2, 2, 3)
    for sample in range(2):
        rollout = np.eye(8)
        for block in range(3):
            attention = 0.5 * sum(scores[block, sample, head] for head in range(4)) / 4 + 0.5 * np.eye(8)
            rollout = attention @ rollout
        np.testing.assert_allclose(found[sample].ravel(), rollout[0, 2:], atol=1e-12)


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
    np.testing.assert_array_equal(rollout, attention_rollout(in_order, backbone.num_prefix_tokens, (3, 4)))


def test_a_dict_is_read_in_the_order_of_the_blocks_not_of_its_keys(rng):
    """JAX sorts the keys of a dict that a model returns: block_10 comes before block_2."""
    scores = scores_of(rng, blocks=12)
    named = {f"block_{i}": scores[i] for i in range(12)}
    by_key = dict(sorted(named.items()))
    assert list(by_key) != list(named)
    np.testing.assert_array_equal(attention_rollout(by_key, 2, (2, 3)), attention_rollout(list(scores), 2, (2, 3)))


def test_errors(rng):
    with raises(
        "`scores` must have, for each block, an array (batch, num_heads, 7, 7): 1 prefix tokens and 2 x 3 patches. "
        "Received: [(2, 4, 8, 8)]"
    ):
        attention_rollout(list(scores_of(rng, blocks=1)), 1, (2, 3))
    with raises(
        "`scores` must have, for each block, an array (batch, num_heads, 7, 7): 1 prefix tokens and 2 x 3 patches. Received: []"
    ):
        attention_rollout({}, 1, (2, 3))

    with raises("`scores` must have the scores of every block, ['block_0']. Received: ['block_2']"):
        attention_rollout({"block_2": scores_of(rng)[0]}, 2, (2, 3))


@pytest.mark.parametrize("channels", [1, 3])
def test_plot(channels, rng, tmp_path):
    pictures = rng.integers(0, 256, (3, 12, 32, channels)).astype("uint8")
    rollouts = attention_rollout(list(scores_of(rng, batch=3)), 2, (2, 3))
    figure = plot_rollouts(pictures, rollouts, ["a", "b", "c"], columns=2)
    drawn = [axis for axis in figure.axes if axis.images]
    assert len(drawn) == 6
    assert [axis.get_title() for axis in figure.axes if axis.get_title()] == ["a", "b", "c"]
    figure.savefig(tmp_path / "rollouts.png")
    assert (tmp_path / "rollouts.png").stat().st_size > 1000
