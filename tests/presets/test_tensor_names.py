import numpy as np
import pytest

from keras_deit.models import DeiTImageClassifier
from keras_deit.presets.tensor_names import rules, to_keras, to_timm, to_timm_names
from keras_deit.presets.weights import state_of
from tests.helpers import raises, randomize, tiny_backbone

VARIANTS = {
    "plain": {},
    "distilled": {"use_distillation_token": True},
    "deit3": {"position_scope": "patches", "layer_scale_init_value": 0.1},
}


@pytest.fixture(params=VARIANTS)
def case(request, rng):
    """(classifier, its table, its tensors in timm's layout)."""
    classifier = randomize(DeiTImageClassifier(tiny_backbone(**VARIANTS[request.param]), 5), rng)
    table = rules(classifier.backbone.get_config(), "distilled" if request.param == "distilled" else "plain")
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
    assert tensors["pos_embed"].shape == (1, *classifier.backbone.token_position_embedding.positions.shape)
    assert tensors["blocks.2.attn.qkv.weight"].shape == (24, 8)
    assert tensors["blocks.0.mlp.fc1.weight"].shape == (20, 8)
    assert tensors["head.weight"].shape == (5, 8)


def transformers_names(tensors, version):
    """timm's tensors as transformers 4 and 5 name them, written out once more, the other way."""
    renamed = {}
    for name, tensor in tensors.items():
        if name.startswith("blocks."):
            _, index, rest = name.split(".", 2)
            stem = f"deit.encoder.layer.{index}" if version == 4 else f"deit.layers.{index}"
            part = rest.rsplit(".", 1)[1]
            if rest.startswith("attn.qkv"):
                thirds = np.split(tensor, 3)
                names = ("query", "key", "value") if version == 4 else ("q_proj", "k_proj", "v_proj")
                inner = "attention.attention" if version == 4 else "attention"
                renamed.update({f"{stem}.{inner}.{n}.{part}": third for n, third in zip(names, thirds)})
                continue
            module = {
                "attn.proj": ("attention.output.dense", "attention.o_proj"),
                "mlp.fc1": ("intermediate.dense", "mlp.fc1"),
                "mlp.fc2": ("output.dense", "mlp.fc2"),
                "norm1": ("layernorm_before",) * 2,
                "norm2": ("layernorm_after",) * 2,
            }[rest.rsplit(".", 1)[0]][version - 4]
            renamed[f"{stem}.{module}.{part}"] = tensor
        else:
            start, _, part = name.partition(".")
            renamed[
                {
                    "cls_token": "deit.embeddings.cls_token",
                    "dist_token": "deit.embeddings.distillation_token",
                    "pos_embed": "deit.embeddings.position_embeddings",
                    "patch_embed": f"deit.embeddings.patch_embeddings.projection.{part.removeprefix('proj.')}",
                    "norm": f"deit.layernorm.{part}",
                    "head": f"cls_classifier.{part}",
                    "head_dist": f"distillation_classifier.{part}",
                }[start]
            ] = tensor
    return renamed


@pytest.mark.parametrize("version", [4, 5])
def test_names_of_transformers(version, rng):
    classifier = randomize(DeiTImageClassifier(tiny_backbone(use_distillation_token=True), 5), rng)
    table = rules(classifier.backbone.get_config(), "distilled")
    tensors = to_timm(state_of(classifier), table)
    found = to_timm_names(transformers_names(tensors, version))
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(found[name], tensor)


def test_names_of_facebookresearch():
    tensors = {"blocks.0.gamma_1": 1, "blocks.11.gamma_2": 2, "cls_token": 3}
    assert to_timm_names(tensors) == {"blocks.0.ls1.gamma": 1, "blocks.11.ls2.gamma": 2, "cls_token": 3}


def test_a_renamed_tensor_is_named_on_both_sides(case):
    """Nothing is matched by its suffix."""
    _, table, tensors = case
    tensors["model.norm.weight"] = tensors.pop("norm.weight")
    with raises(
        "The tensors of my file are not those of the architecture.\nMissing: norm.weight\nLeft over: model.norm.weight (8,)"
    ):
        to_keras(tensors, table, "my file")
