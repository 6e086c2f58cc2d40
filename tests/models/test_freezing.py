"""What is frozen stays frozen: in a model around it, in `.keras` files and in presets."""

import json

import keras
import pytest

from keras_deit.layers import TransformerBlock
from keras_deit.models import DeiTBackbone, DeiTImageClassifier
from keras_deit.training import freeze_blocks, train_only
from tests.helpers import tiny_backbone, tiny_classifier


def freeze(*paths, value=False):
    """A function that freezes those attributes of a model, `"backbone.blocks.0.mlp"`."""

    def apply(model):
        for path in paths:
            layer = model
            for name in path.split(".") if path else ():
                layer = layer[int(name)] if name.isdigit() else getattr(layer, name)
            layer.trainable = value
        return model

    return apply


def only(part, num_blocks=0):
    """A function that trains a part of a model, and freezes its first blocks."""

    def apply(model):
        train_only(model, part)
        if num_blocks:
            freeze_blocks(model, num_blocks)
        return model

    return apply


FROZEN = {
    "nothing": lambda model: model,
    "all": freeze(""),
    "backbone": freeze("backbone"),
    "one block": freeze("backbone.blocks.0"),
    "parts of blocks": freeze(
        "backbone.blocks.0.attention.qkv", "backbone.blocks.2.mlp", "backbone.final_norm"
    ),
    "embeddings": freeze("backbone.patch_embedding", "backbone.token_position_embedding"),
    "head": freeze("head"),
    "half of the head": freeze("head.class_head"),
    "backbone but one block": lambda model: freeze("backbone.blocks.1", value=True)(
        freeze("backbone")(model)
    ),
    "all but the last block's MLP": lambda model: freeze("backbone.blocks.2.mlp", value=True)(
        freeze("")(model)
    ),
    "all but the head": lambda model: freeze("head", value=True)(freeze("")(model)),
    "two blocks": only("all", 2),
    "all but attention": only("attention"),
    "all but biases": only("bias"),
    "all but the attention of the last block": only("attention", 2),
}


def trains(model):
    """{path of a layer: whether it trains}, {path of a variable: whether it trains}, wherever the
    model stands.
    """
    layers = [model] + model._flatten_layers(include_self=False)
    layers = [layer for layer in layers if layer.weights]
    return [layer.trainable for layer in layers], [
        (v.path.split("/", 1)[-1], v.trainable) for layer in layers for v in layer.weights
    ]


def test_no_two_cases_are_the_same():
    assert len({str(trains(case(tiny_classifier()))) for case in FROZEN.values()}) == len(FROZEN)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(
            case, marks=() if case in ("parts of blocks", "all but attention") else pytest.mark.slow
        )
        for case in FROZEN
    ],
)
def test_a_classifier_of_files_trains_what_the_saved_one_trained(case, tmp_path):
    classifier = FROZEN[case](tiny_classifier())
    expected = trains(classifier)
    for turn in range(2):  # what was loaded saves as well
        classifier.save(tmp_path / f"{turn}.keras")
        classifier = keras.saving.load_model(tmp_path / f"{turn}.keras")
        assert trains(classifier) == expected
        classifier.save_to_preset(tmp_path / "preset")
        classifier = DeiTImageClassifier.from_preset(tmp_path / "preset")
        assert trains(classifier) == expected
    twin = DeiTImageClassifier.from_config(json.loads(json.dumps(classifier.get_config())))
    assert trains(twin) == expected


@pytest.mark.parametrize("path", ["", "blocks.0", "blocks.1.attention.projection"])
def test_a_users_model_with_a_backbone_inside(path, tmp_path):
    backbone = freeze(path)(tiny_backbone())
    inputs = keras.Input((12, 32, 3))
    model = keras.Model(inputs, keras.layers.Dense(2)(backbone(inputs)[:, 0]))
    model.save(tmp_path / "model.keras")
    assert trains(keras.saving.load_model(tmp_path / "model.keras")) == trains(model)


def test_a_users_model_of_blocks(tmp_path):
    inputs = keras.Input((5, 8))
    x = TransformerBlock(2, 12, trainable=False, name="first")(inputs)
    x = TransformerBlock(2, 12, layer_scale_init_value=0.1, name="second")(x)
    model = keras.Model(inputs, x)
    model.get_layer("second").attention.trainable = False
    names = {variable.path for variable in model.trainable_variables}
    assert len(names) == 10 and all(
        "second/mlp" in name or "norm" in name or "scale" in name for name in names
    )
    model.save(tmp_path / "model.keras")
    assert trains(keras.saving.load_model(tmp_path / "model.keras")) == trains(model)


def test_frozen_by_the_constructor():
    assert tiny_backbone(trainable=False).get_config()["trainable"] is False
    for model in (tiny_backbone(trainable=False), tiny_classifier(trainable=False)):
        around = keras.Sequential([keras.Input((12, 32, 3)), model])
        assert around.trainable and not around.trainable_variables
    backbone = tiny_backbone(trainable=False)
    classifier = DeiTImageClassifier(backbone, 5)
    assert classifier.trainable_variables == classifier.head.trainable_variables


def test_a_layer_frozen_before_it_is_built():
    block = TransformerBlock(2, 12)
    block.trainable = False
    assert not keras.Sequential([keras.Input((5, 8)), block]).trainable_variables


@pytest.mark.slow
def test_overrides_of_a_frozen_preset(tmp_path):
    classifier = freeze("backbone", "head")(tiny_classifier())
    classifier.save_to_preset(tmp_path / "preset")
    fresh = DeiTImageClassifier.from_preset(tmp_path / "preset", num_classes=3)
    assert fresh.trainable_variables == fresh.head.trainable_variables
    assert len(fresh.trainable_variables) == 4
    resized = DeiTImageClassifier.from_preset(tmp_path / "preset", image_shape=(24, 32, 3))
    assert resized.trainable and not resized.trainable_variables
    assert DeiTBackbone.from_preset(tmp_path / "preset", trainable=True).trainable_variables
    assert not DeiTBackbone.from_preset(tmp_path / "preset").trainable_variables
    random = DeiTImageClassifier.from_preset(tmp_path / "preset", load_weights=False)
    assert len(random.trainable_variables) == len(tiny_classifier().trainable_variables)
    random = DeiTImageClassifier.from_preset(
        tmp_path / "preset", load_weights=False, trainable=False
    )
    assert not random.backbone.trainable_variables
