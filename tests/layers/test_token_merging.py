import keras
import numpy as np
import pytest

from keras_deit.layers import (
    MergingTransformerBlock,
    MultiHeadSelfAttention,
    TokenMerging,
    TransformerBlock,
    target_platform,
)
from tests.gradients import measured_gradients, trained_gradients
from tests.helpers import images, numpy, raises, randomize, tiny_backbone, tiny_classifier

pytestmark = pytest.mark.backend

PREFIX = 2


def merge_one_by_one(tokens, keys, sizes, merged, prefix):
    """The paper's algorithm for one image, a pair at a time, in float64."""
    patches = range(prefix, len(tokens))
    sources, targets = list(patches)[::2], list(patches)[1::2]
    keys = keys / np.linalg.norm(keys, axis=-1, keepdims=True)
    best = {
        source: max(targets, key=lambda target: keys[source] @ keys[target]) for source in sources
    }
    order = sorted(sources, key=lambda source: -(keys[source] @ keys[best[source]]))
    groups = {target: [target] for target in targets}
    for source in order[:merged]:
        groups[best[source]].append(source)
    groups = (
        [[i] for i in range(prefix)]
        + [[i] for i in order[merged:]]
        + [groups[target] for target in targets]
    )
    return (
        np.stack([np.average(tokens[group], axis=0, weights=sizes[group]) for group in groups]),
        np.array([sizes[group].sum() for group in groups]),
    )


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize("prefix", [0, 1, 2])
@pytest.mark.parametrize("count", [12, 13])
def test_equals_the_algorithm_of_the_paper(prefix, count, platform, rng):
    tokens, keys = rng.normal(size=(3, count, 8)), rng.normal(size=(3, count, 5))
    sizes = rng.integers(1, 6, size=(3, count)).astype("float64")
    with target_platform(platform):
        outputs, token_sizes = TokenMerging(4, prefix)(
            tokens.astype("float32"), keys.astype("float32"), token_sizes=sizes.astype("float32")
        )
    for sample in range(3):
        expected, expected_sizes = merge_one_by_one(
            tokens[sample], keys[sample], sizes[sample], 4, prefix
        )
        np.testing.assert_allclose(numpy(outputs)[sample], expected, atol=1e-5)
        np.testing.assert_allclose(numpy(token_sizes)[sample], expected_sizes, atol=1e-5)


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_gradients_are_those_of_finite_differences(platform, rng):
    tokens, keys = rng.normal(size=(1, 8, 3)), rng.normal(size=(1, 8, 5))
    sizes, weights = rng.uniform(1, 3, size=(1, 8)), rng.normal(size=(6, 3))
    layer = TokenMerging(2, 1)

    def merge(tokens, sizes):
        outputs, _ = layer(tokens, keras.ops.array(keys, "float32"), token_sizes=sizes)
        return outputs * keras.ops.array(weights, "float32")

    with target_platform(platform):
        found = trained_gradients(merge, tokens, sizes)
    expected = measured_gradients(
        lambda tokens, sizes: merge_one_by_one(tokens[0], keys[0], sizes[0], 2, 1)[0] * weights,
        tokens,
        sizes,
    )
    for gradient, measured in zip(found, expected):
        assert abs(measured).max() > 0.02
        np.testing.assert_allclose(gradient, measured, atol=1e-5)


def test_nothing_is_lost_and_the_prefix_stays(rng):
    tokens = rng.normal(size=(2, 11, 6)).astype("float32")
    outputs, token_sizes = map(numpy, TokenMerging(3, PREFIX)(tokens))
    assert outputs.shape == (2, 8, 6)
    np.testing.assert_array_equal(outputs[:, :PREFIX], tokens[:, :PREFIX])
    np.testing.assert_allclose(
        (outputs * token_sizes[..., None]).sum(axis=1), tokens.sum(axis=1), atol=1e-5
    )
    np.testing.assert_array_equal(token_sizes.sum(axis=1), 11)


def test_at_most_half_of_the_patches_go(rng):
    outputs, token_sizes = TokenMerging(100, PREFIX)(rng.normal(size=(2, 11, 6)).astype("float32"))
    assert outputs.shape == (2, 11 - 4, 6)
    assert token_sizes.shape == (2, 7)


@pytest.mark.parametrize("with_scores", [True, False])
def test_a_token_of_size_n_is_attended_to_as_n_equal_tokens(with_scores, rng):
    layer = MultiHeadSelfAttention(2)
    few = rng.normal(size=(3, 4, 8)).astype("float32")
    many = np.repeat(few, [1, 3, 2, 1], axis=1)
    layer.build(few.shape)
    randomize(layer, rng)
    sizes = np.tile(np.float32([1, 3, 2, 1]), (3, 1))
    merged = layer.attend(*layer.heads(few), token_sizes=sizes, return_attention_scores=with_scores)
    merged = merged[0] if with_scores else merged
    np.testing.assert_allclose(numpy(merged), numpy(layer(many))[:, [0, 1, 4, 6]], atol=1e-5)


def test_merging_equal_tokens_changes_no_other_token(rng):
    """Patches that come twice merge with their twins, and the prefix tokens see what they saw
    before.
    """
    patches = np.repeat(rng.normal(size=(2, 3, 8)), 2, axis=1)
    tokens = np.concatenate([rng.normal(size=(2, PREFIX, 8)), patches], axis=1).astype("float32")
    merging = [
        MergingTransformerBlock(2, 12, num_merged_tokens=3, num_prefix_tokens=PREFIX),
        MergingTransformerBlock(2, 12, num_merged_tokens=1, num_prefix_tokens=PREFIX),
    ]
    plain = [TransformerBlock(2, 12), TransformerBlock(2, 12)]
    for block, twin in zip(merging, plain):
        block.build(tokens.shape)
        randomize(block, rng)
        twin.build(tokens.shape)
        twin.set_weights(block.get_weights())
    x, token_sizes = merging[0](tokens)
    np.testing.assert_array_equal(numpy(token_sizes), [[1, 1, 2, 2, 2]] * 2)
    x, token_sizes = merging[1](x, token_sizes, num_queries=PREFIX)
    np.testing.assert_array_equal(numpy(token_sizes), [[1, 1]] * 2)
    np.testing.assert_allclose(numpy(x), numpy(plain[1](plain[0](tokens)))[:, :PREFIX], atol=1e-4)


def test_a_backbone_that_merges(rng):
    backbone = tiny_backbone(num_merged_tokens=2, use_distillation_token=True)
    x = images(rng)
    assert backbone.output.shape == (None, 2 + 12 - 3 * 2, 8)
    assert [scores.shape[2:] for scores in backbone.attention_scores.values()] == [
        (14, 14),
        (12, 12),
        (10, 10),
    ]
    assert [outputs.shape[1] for outputs in backbone.block_outputs.values()] == [12, 10, 8]
    assert np.isfinite(numpy(backbone(x))).all()
    with raises(
        "`pyramid_outputs` needs one token for each patch, so use `num_merged_tokens=0`. Received: "
        "num_merged_tokens=2"
    ):
        backbone.pyramid_outputs["P1"]


@pytest.mark.slow
def test_a_classifier_that_merges_trains_and_saves(rng, tmp_path):
    classifier = tiny_classifier({"num_merged_tokens": 2}, preprocessor=None)
    x, y = images(rng), np.arange(4)
    classifier.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    before = [numpy(weight).copy() for weight in classifier.trainable_weights]
    assert np.isfinite(classifier.train_on_batch(x, y))
    # The last block's patch tokens are nobody's: all else has a gradient.
    assert all(
        (numpy(weight) != old).any() for weight, old in zip(classifier.trainable_weights, before)
    )
    classifier.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.backbone.num_merged_tokens == 2
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), classifier.predict(x, verbose=0))
    scored = keras.Model(classifier.input, classifier.outputs_with_attention_scores)(x)
    np.testing.assert_allclose(numpy(scored["outputs"]), numpy(classifier(x)), atol=1e-5)


def test_errors():
    with raises("`num_merged_tokens` must be a positive integer. Received: num_merged_tokens=0"):
        TokenMerging(0)
    with raises(
        "`num_prefix_tokens` must be a non-negative integer. Received: num_prefix_tokens=-1"
    ):
        TokenMerging(1, num_prefix_tokens=-1)
    with raises("`num_merged_tokens` must be a positive integer. Received: num_merged_tokens=0"):
        MergingTransformerBlock(2, 12, num_merged_tokens=0)
    with raises(
        "`num_merged_tokens` must be a non-negative integer. Received: num_merged_tokens=-1"
    ):
        tiny_backbone(num_merged_tokens=-1)
    with raises(
        "`TokenMerging` needs a known number of tokens: use images of a fixed size. Received: "
        "input shape (None, None, 8)"
    ):
        TokenMerging(1)(keras.Input((None, 8)))
    with raises(
        'Merged tokens are not the patches. Use `pooling="token"`, or a backbone with '
        "`num_merged_tokens=0`. Received: pooling='mean', num_merged_tokens=1"
    ):
        tiny_classifier({"num_merged_tokens": 1}, pooling="mean", use_distillation_head=False)


@pytest.mark.skipif(
    keras.backend.backend() != "torch", reason="test_export_model.py has TensorFlow's"
)
@pytest.mark.filterwarnings("ignore:.torch.jit.trace:DeprecationWarning")  # Keras calls it
def test_exported_from_pytorch(rng, tmp_path):
    openvino = pytest.importorskip("openvino")
    classifier = tiny_classifier({"num_merged_tokens": 2}, preprocessor=None)
    x = images(rng)
    expected = numpy(classifier(x))
    classifier.export(str(tmp_path / "merged.xml"), format="openvino", verbose=False)
    compiled = openvino.Core().compile_model(
        str(tmp_path / "merged.xml"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    np.testing.assert_allclose(compiled(x)[0], expected, rtol=0, atol=1e-5)
