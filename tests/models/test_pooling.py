"""What the head of a classifier reads."""

import keras
import numpy as np
import pytest

from keras_deit.models import DeiTImageClassifier
from keras_deit.visualization import attention_model
from tests import witness
from tests.helpers import images, numpy, raises, randomize, tiny_backbone, tiny_classifier

pytestmark = pytest.mark.backend

BACKBONES = {
    "class token and registers": {"num_register_tokens": 2},
    "no prefix tokens": {"use_class_token": False},
}
CASES = [
    (prefix, pooling, use_head_norm)
    for prefix in BACKBONES
    for pooling in ("token", "mean", "token_and_mean", "map")
    for use_head_norm in (False, True)
    if not (prefix == "no prefix tokens" and "token" in pooling)
]


@pytest.fixture(params=CASES, ids=lambda case: "-".join(map(str, case)))
def classifier(request, rng):
    prefix, pooling, use_head_norm = request.param
    return randomize(
        DeiTImageClassifier(
            tiny_backbone(**BACKBONES[prefix], use_final_norm=not use_head_norm),
            5,
            pooling=pooling,
            use_head_norm=use_head_norm,
        ),
        rng,
    )


def pooled(tokens, classifier):
    """What the head reads, in NumPy."""
    patches = tokens[:, classifier.backbone.num_prefix_tokens :]
    if classifier.pooling == "token":
        return tokens[:, 0]
    if classifier.pooling == "mean":
        return patches.mean(axis=1)
    if classifier.pooling == "token_and_mean":
        return np.concatenate([tokens[:, 0], patches.mean(axis=1)], axis=-1)
    return numpy(classifier.attention_pooling(patches.astype("float32")))  # tested by itself


def test_the_head_reads_what_pooling_says(classifier, rng):
    x = images(rng)
    vector = pooled(numpy(classifier.backbone(x)).astype("float64"), classifier)
    if classifier.use_head_norm:
        vector = witness.layer_norm(vector, witness.weights_of(classifier.head_norm), 1e-6)
    expected = witness.dense(vector, witness.weights_of(classifier.head))
    np.testing.assert_allclose(numpy(classifier(x)), expected, atol=1e-5)


def test_presets_and_files_keep_it(classifier, rng, tmp_path):
    x = images(rng)
    expected = numpy(classifier(x))
    classifier.save_to_preset(tmp_path / "preset")
    classifier.save(tmp_path / "model.keras")
    for twin in (
        DeiTImageClassifier.from_preset(tmp_path / "preset"),
        keras.saving.load_model(tmp_path / "model.keras"),
    ):
        assert twin.get_config() == classifier.get_config()
        np.testing.assert_array_equal(numpy(twin(x)), expected)
    other = DeiTImageClassifier.from_preset(tmp_path / "preset", num_classes=3)
    assert other(x).shape == (4, 3)


def test_scores_come_with_the_same_outputs(classifier, rng):
    x = images(rng)
    outputs = attention_model(classifier)(x)
    np.testing.assert_allclose(numpy(outputs["outputs"]), numpy(classifier(x)), atol=1e-5)
    tokens = classifier.backbone.num_prefix_tokens + 12
    assert outputs["attention_scores"]["block_2"].shape == (4, 2, tokens, tokens)


@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method:UserWarning")
def test_what_quantize_and_freezing_change_is_kept(rng, tmp_path):
    classifier = DeiTImageClassifier(
        tiny_backbone(use_class_token=False), 5, pooling="map", use_head_norm=True
    )
    randomize(classifier, rng)
    classifier.attention_pooling.mlp.trainable = False
    classifier.quantize("int8")
    classifier.save_to_preset(tmp_path / "preset")
    twin = DeiTImageClassifier.from_preset(tmp_path / "preset")
    assert twin.attention_pooling.key_value.quantization_mode == "int8"
    assert twin.attention_pooling.mlp.trainable is False
    x = images(rng)
    np.testing.assert_array_equal(numpy(twin(x)), numpy(classifier(x)))


def test_errors():
    with raises(
        "`pooling` must be one of 'token', 'mean', 'token_and_mean', 'map'. Received: pooling='max'"
    ):
        tiny_classifier(pooling="max")
    with raises(
        '`pooling="map"` needs a single head, but this classifier has two. Use `pooling="token"`, '
        "or `use_distillation_head=False`. Received: pooling='map'"
    ):
        tiny_classifier(pooling="map")
    with raises(
        '`pooling="token"` reads the class token, and the backbone has none. Use '
        '`pooling="mean"` or `pooling="map"`, or a backbone with `use_class_token=True`. '
        "Received: pooling='token'"
    ):
        DeiTImageClassifier(tiny_backbone(use_class_token=False), 5)
    with raises(
        'Merged tokens are not the patches. Use `pooling="token"`, or a backbone with '
        "`num_merged_tokens=0`. Received: pooling='token_and_mean', num_merged_tokens=1"
    ):
        DeiTImageClassifier(tiny_backbone(num_merged_tokens=1), 5, pooling="token_and_mean")
    with raises("`use_head_norm` must be `True` or `False`. Received: use_head_norm='no'"):
        tiny_classifier(use_head_norm="no")


def test_arguments_that_exclude_each_other():
    with raises(
        "A distillation token needs a class token beside it. Use `use_class_token=True`, or "
        "`use_distillation_token=False`. Received: use_class_token=False, "
        "use_distillation_token=True"
    ):
        tiny_backbone(use_class_token=False, use_distillation_token=True)
    with raises(
        '`position_scope="rotary"` needs every patch in its place. Use `num_merged_tokens=0`. '
        "Received: position_scope='rotary', num_merged_tokens=1"
    ):
        tiny_backbone(position_scope="rotary", num_merged_tokens=1)
    with raises(
        '`position_scope="rotary"` needs every patch in its place. Use `patch_dropout_rate=0`. '
        "Received: position_scope='rotary', patch_dropout_rate=0.5"
    ):
        tiny_backbone(position_scope="rotary", patch_dropout_rate=0.5)
    with raises(
        "Tokens are merged only where their number is known, and patch dropout changes it in "
        "training. Use one of the two. Received: num_merged_tokens=1, patch_dropout_rate=0.5"
    ):
        tiny_backbone(num_merged_tokens=1, patch_dropout_rate=0.5)
    with raises(
        "`position_scope` must be one of 'all', 'patches', 'rotary'. Received: "
        "position_scope='none'"
    ):
        tiny_backbone(position_scope="none")
