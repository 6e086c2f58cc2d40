import numpy as np
import pytest

from keras_deit import presets
from keras_deit.models import DeiTImageClassifier
from keras_deit.presets.pytorch.tensor_names import rules, to_keras, to_timm, to_timm_names
from keras_deit.presets.weights import state_of
from tests.helpers import raises, randomize, tiny_backbone
from tests.hub_layouts import transformers_names

VARIANTS = {
    "plain": {},
    "distilled": {"use_distillation_token": True},
    "deit3": {"position_scope": "patches", "layer_scale_init_value": 0.1},
}


@pytest.fixture(params=VARIANTS)
def case(request, rng):
    """(classifier, its table, its tensors in timm's layout)."""
    classifier = randomize(DeiTImageClassifier(tiny_backbone(**VARIANTS[request.param]), 5), rng)
    table = rules(classifier.backbone.get_config(), classifier.get_config())
    return classifier, table, to_timm(state_of(classifier), table)


def test_every_variable_has_a_rule_and_there_and_back_is_bit_exact(case):
    classifier, table, tensors = case
    state = state_of(classifier)
    assert {rule.path for rule in table} == set(state)
    back = to_keras(tensors, table, "tensors")
    for path, array in state.items():
        np.testing.assert_array_equal(back[path], array)
    again = to_timm(back, table)
    assert list(again) == list(tensors)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(again[name], tensor)


def test_shapes_are_those_of_timm(case):
    classifier, _, tensors = case
    assert tensors["patch_embed.proj.weight"].shape == (8, 3, 4, 8)
    assert tensors["cls_token"].shape == (1, 1, 8)
    assert tensors["pos_embed"].shape == (
        1,
        *classifier.backbone.token_position_embedding.positions.shape,
    )
    assert tensors["blocks.2.attn.qkv.weight"].shape == (24, 8)
    assert tensors["blocks.0.mlp.fc1.weight"].shape == (20, 8)
    assert tensors["head.weight"].shape == (5, 8)


@pytest.mark.parametrize("version", [4, 5])
def test_names_of_transformers(version, rng):
    classifier = randomize(DeiTImageClassifier(tiny_backbone(use_distillation_token=True), 5), rng)
    table = rules(classifier.backbone.get_config(), classifier.get_config())
    tensors = to_timm(state_of(classifier), table)
    found = to_timm_names(transformers_names(tensors, version))
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(found[name], tensor)


@pytest.mark.parametrize("distilled", [True, False])
def test_to_the_names_of_transformers(distilled, rng):
    classifier = randomize(
        DeiTImageClassifier(tiny_backbone(use_distillation_token=distilled), 5), rng
    )
    model, heads = (
        ("deit", ("cls_classifier", "distillation_classifier"))
        if distilled
        else ("vit", ("classifier",))
    )
    expected = transformers_names(presets.timm_tensors(classifier), 4, model, heads)
    found = presets.transformers_tensors(classifier)
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name], tensor)


def test_names_of_facebookresearch():
    tensors = {"blocks.0.gamma_1": 1, "blocks.11.gamma_2": 2, "cls_token": 3}
    assert to_timm_names(tensors) == {
        "blocks.0.ls1.gamma": 1,
        "blocks.11.ls2.gamma": 2,
        "cls_token": 3,
    }


def test_a_renamed_tensor_is_named_on_both_sides(case):
    """Nothing is matched by its suffix."""
    _, table, tensors = case
    original = tensors.pop("norm.weight")
    for name in ("model.norm.weight", "vit.norm.weight", "encoder.layernorm.weight"):
        with raises(
            "The tensors of my file (here under timm's names) do not match the "
            f"architecture.\nMissing: norm.weight (8,)\nUnexpected: {name} (8,)\nWrong shape: none"
        ):
            to_keras(to_timm_names({**tensors, name: original}), table, "my file")


def test_two_names_of_one_tensor_are_refused():
    with raises(
        "Several tensors map to timm's head.weight: classifier.weight, cls_classifier.weight. Keep "
        "one of them."
    ):
        to_timm_names({"classifier.weight": 1, "cls_classifier.weight": 2})
