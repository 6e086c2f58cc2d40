"""Layer-wise learning-rate decay: the factor of every variable."""

import dataclasses

import keras
import numpy as np
import pytest

from keras_deit.models import DeiTDistiller, DeiTImageClassifier
from keras_deit.training import RECIPES
from keras_deit.training.learning_rates import learning_rate_factor
from tests.examples.test_using import torchvision  # noqa: F401
from tests.helpers import numpy, raises, tiny_backbone, tiny_classifier

RECIPE = dataclasses.replace(RECIPES["deit"], layer_decay=0.5, ema_momentum=None)


def factors(model, recipe=RECIPE):
    """{path: factor} of the variables that train."""
    optimizer = recipe.build_optimizer(model, steps_per_epoch=1)
    settings = optimizer.get_config()
    rule = [settings[name] for name in ("layer_decay", "num_layers", "head_learning_rate_factor")]
    return {v.path: learning_rate_factor(v.path, *rule) for v in model.trainable_variables}


def by_layer(model, recipe=RECIPE):
    """{factor: names of the layers with that factor}."""
    found = {}
    for path, factor in factors(model, recipe).items():
        names = found.setdefault(factor, [])
        name = path.split("/")[-2 if path.startswith("block_") else 0]
        if name not in names:
            names.append(name)
    return found


# With three blocks: 0.5 ** 4 for the embedding, 1 for the head
TABLE = {
    "patch_embedding/projection/kernel": 0.0625,
    "patch_embedding/projection/bias": 0.0625,
    "token_position_embedding/prefix_tokens": 0.0625,
    "token_position_embedding/positions": 0.0625,
    "pre_norm/gamma": 0.0625,
    "pre_norm/beta": 0.0625,
    **{
        f"block_{index}/{name}": factor
        for index, factor in enumerate((0.125, 0.25, 0.5))
        for name in (
            "attention_norm/gamma",
            "attention_norm/beta",
            "attention/query_norm/gamma",
            "attention/query_norm/beta",
            "attention/key_norm/gamma",
            "attention/key_norm/beta",
            "attention/qkv/kernel",
            "attention/qkv/bias",
            "attention/projection/kernel",
            "attention/projection/bias",
            "mlp_norm/gamma",
            "mlp_norm/beta",
            "mlp/intermediate/kernel",
            "mlp/intermediate/bias",
            "mlp/projection/kernel",
            "mlp/projection/bias",
            "attention_scale/gamma",
            "mlp_scale/gamma",
        )
    },
    "final_norm/gamma": 0.5,  # as the last block
    "final_norm/beta": 0.5,
    "head/class_head/kernel": 1.0,
    "head/class_head/bias": 1.0,
    "head/distillation_head/kernel": 1.0,
    "head/distillation_head/bias": 1.0,
}
ALL_PARTS = {
    "use_pre_norm": True,
    "use_qk_norm": True,
    "layer_scale_init_value": 0.1,
    "num_register_tokens": 2,
}


def test_the_factor_of_each_variable():
    assert factors(tiny_classifier(ALL_PARTS)) == TABLE


def test_a_distiller_trains_as_its_student():
    student = tiny_classifier(ALL_PARTS)
    assert factors(DeiTDistiller(student, tiny_classifier({"num_layers": 1}))) == TABLE


def test_a_head_with_its_own_factor():
    recipe = dataclasses.replace(RECIPE, head_learning_rate_factor=10.0)
    expected = {path: 10.0 if path.startswith("head") else f for path, f in TABLE.items()}
    assert factors(tiny_classifier(ALL_PARTS), recipe) == expected


def test_frozen_blocks_do_not_change_the_factors_of_others():
    model = tiny_classifier(ALL_PARTS)
    model.backbone.patch_embedding.trainable = model.backbone.blocks[0].trainable = False
    found = factors(model)
    assert found == {path: TABLE[path] for path in found} and len(found) < len(TABLE)


def test_a_pooling_belongs_to_the_head():
    backbone = tiny_backbone(use_class_token=False, use_final_norm=False, position_scope="rotary")
    model = DeiTImageClassifier(backbone, 5, pooling="map", use_head_norm=True)
    assert {factor: set(names) for factor, names in by_layer(model).items()} == {
        0.0625: {"patch_embedding"},
        **{
            factor: {"attention_norm", "qkv", "projection", "mlp_norm", "intermediate"}
            for factor in (0.125, 0.25, 0.5)
        },
        1.0: {"attention_pooling", "head_norm", "head"},
    }


def test_a_users_model_around_a_backbone():
    images = keras.Input((12, 32, 3))
    tokens = tiny_backbone()(images)
    outputs = keras.layers.Dense(2, name="scores")(tokens[:, 0])
    found = factors(keras.Model(images, outputs))
    expected = {path: factor for path, factor in TABLE.items() if path in found}
    assert found == {**expected, "scores/kernel": 1.0, "scores/bias": 1.0}


def test_without_decay_every_factor_is_one():
    recipe = dataclasses.replace(RECIPE, layer_decay=None, head_learning_rate_factor=2.0)
    found = factors(tiny_classifier(), recipe)
    assert {path.split("/")[0] for path, factor in found.items() if factor == 2.0} == {"head"}
    assert set(found.values()) == {1.0, 2.0}


def test_error_without_blocks():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, name="head")], name="mine")
    with raises(
        "This recipe has a learning rate for each block, but the model has no trainable layer "
        "named `block_0`, `block_1` or so on. Rename your layers, or use "
        "`dataclasses.replace(recipe, layer_decay=None)`. Received: a model whose last trainable "
        "variables are mine/head/kernel, mine/head/bias"
    ):
        RECIPE.build_optimizer(model, 1)


TIMM = {
    "vit_tiny_patch16_224": {"img_size": 32},
    "deit_tiny_distilled_patch16_224": {"img_size": 32},
    "deit3_small_patch16_224": {"img_size": 32},
    "vit_small_patch14_reg4_dinov2": {"img_size": 28},
    "vit_small_patch16_dinov3_qkvb": {"img_size": 32},
    "vit_base_patch32_clip_224": {"img_size": 64, "embed_dim": 96, "num_heads": 4},  # pre_norm
    "eva_large_patch14_196": {"img_size": 28, "embed_dim": 96, "num_heads": 4},  # head_norm
    "vit_so150m_patch16_reg4_map_256": {"img_size": 32, "embed_dim": 96, "num_heads": 4},
}


@pytest.mark.peer
@pytest.mark.parametrize("name", TIMM)
def test_factors_are_those_of_timm(name, tmp_path, torchvision):  # noqa: F811
    """Each parameter of timm's model gets its factor as its value, and takes it along."""
    import timm
    import torch
    from timm.optim import param_groups_layer_decay

    arguments = {"depth": 3, **TIMM[name]}
    model = timm.create_model(name, num_classes=5, **arguments)
    with torch.no_grad():
        for group in param_groups_layer_decay(model, layer_decay=0.5):
            for parameter in group["params"]:
                parameter.fill_(group["lr_scale"])
    timm.models.save_for_hf(
        model,
        tmp_path,
        model_args=arguments,
        model_config={"num_classes": 5},
        safe_serialization=True,
    )
    ours = DeiTImageClassifier.from_preset(tmp_path)
    found = factors(ours)
    assert set(found.values()) == {0.0625, 0.125, 0.25, 0.5, 1.0}
    for variable in ours.trainable_variables:
        values = set(np.unique(numpy(variable)))
        if variable.name == "bias" and 0.0 in values:  # timm's model has no such bias
            values = values - {0.0} or {found[variable.path]}
        assert values == {found[variable.path]}, variable.path
