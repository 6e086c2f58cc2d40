"""Every public class with arguments that fit, and with some that do not.

What does not fit is refused by its name. What is accepted comes back from the config.
"""

import dataclasses
import functools
import json

import hypothesis
import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import keras_deit
from keras_deit import layers, losses, models
from keras_deit.training import Augmentation, Recipe
from tests.helpers import tiny_backbone, tiny_classifier

JUNK = st.sampled_from(
    [
        ValueError("x"),
        object(),
        {"a": 1},
        {"": 1},
        {1, 2},
        b"x",
        1j,
        -3,
        float("nan"),
        float("inf"),
        10**400,
        "nonsense",
        [],
        [None],
        [[1], 2],
        (1, 2, 3, 4, 5, 6, 7),
        np.array([[1, 2]]),
        np.array(["all", "patches"]),
        np.float64("nan"),
        len,
        dict,
        keras.layers.Dense(1),
    ]
)


def of_numpy(*values):
    """Each value, also as NumPy's."""
    return [*values, *map(np.asarray(values[0]).dtype.type, values)]


SIZE = of_numpy(1, 2, 4)
RATE = [*of_numpy(0.0, 0.1, 0.5), 0, np.float32(0.25)]
POSITIVE = [*of_numpy(1e-4, 0.5), 1, np.float32(0.25)]
NOT_NEGATIVE = [*POSITIVE, 0, 0.0]
SWITCH = of_numpy(True, False)
SHARE = [*of_numpy(0.3, 1.0), 1]
TRAINABLE = [True, False, np.False_, {"": True}, {"": False}]
FORMAT = [None, "channels_last", "channels_first"]
FUNCTIONS = [None, "gelu", "relu", keras.activations.tanh, layers.gelu]
BLOCK = {
    "num_heads": SIZE,
    "intermediate_dim": SIZE,
    "dropout_rate": RATE,
    "attention_dropout_rate": RATE,
    "drop_path_rate": RATE,
    "layer_scale_init_value": [None, *POSITIVE],
    "layer_norm_epsilon": POSITIVE,
    "remat": SWITCH,
    "use_qk_norm": SWITCH,
    "activation": FUNCTIONS,
    "use_gated_mlp": SWITCH,
    "trainable": TRAINABLE,
    "quantization_config": [None, {}],
}
REDUCTIONS = [None, "sum", "sum_over_batch_size", "mean", "none"]
LAYERS = {
    layers.PatchEmbedding: {
        "hidden_dim": SIZE,
        "patch_size": [*SIZE, (2, 3), [4, 1]],
        "data_format": FORMAT,
        "flatten": SWITCH,
        "pad_images": SWITCH,
        "trainable": TRAINABLE,
    },
    layers.HMLPStem: {
        "hidden_dim": of_numpy(4, 8),
        "patch_size": of_numpy(8, 16, 32),
        "data_format": FORMAT,
        "trainable": TRAINABLE,
        "quantization_config": [None, {}],
    },
    layers.TokenPositionEmbedding: {
        "num_prefix_tokens": [0, *SIZE],
        "grid_size": [*SIZE, (2, 3)],
        "position_scope": ["all", "patches", "none"],
        "dropout_rate": RATE,
        "trainable": TRAINABLE,
    },
    layers.RotaryPositionEmbedding: {
        "head_dim": [4, 8, np.int64(12)],
        "num_prefix_tokens": [0, *SIZE],
        "base": POSITIVE,
    },
    layers.MultiHeadSelfAttention: {
        "num_heads": SIZE,
        "use_bias": SWITCH,
        "dropout_rate": RATE,
        "attention_dropout_rate": RATE,
        "use_qk_norm": SWITCH,
        "layer_norm_epsilon": POSITIVE,
        "trainable": TRAINABLE,
    },
    layers.AttentionPooling: {
        "num_heads": SIZE,
        "intermediate_dim": SIZE,
        "activation": FUNCTIONS,
        "layer_norm_epsilon": POSITIVE,
        "trainable": TRAINABLE,
        "quantization_config": [None, {}],
    },
    layers.MLP: {
        "intermediate_dim": SIZE,
        "activation": FUNCTIONS,
        "dropout_rate": RATE,
        "use_gate": SWITCH,
        "quantization_config": [None, {}],
    },
    layers.LayerScale: {"init_value": POSITIVE},
    layers.DropPath: {"rate": RATE, "seed": [None, 0, 7, np.int64(3)]},
    layers.PatchDropout: {
        "rate": RATE,
        "num_prefix_tokens": [0, *SIZE],
        "seed": [None, 0, 7, np.int64(3)],
    },
    layers.SimpleFeaturePyramid: {
        "hidden_dim": SIZE,
        "levels": [("P1", "P2"), ["P3"], ("P4", "P2", "P3"), ("P0", "P5")],
        "input_level": ["P2", "P4"],
        "layer_norm_epsilon": POSITIVE,
        "data_format": FORMAT,
        "trainable": TRAINABLE,
        "quantization_config": [None, {}],
    },
    layers.TransformerBlock: BLOCK,
    layers.MergingTransformerBlock: {
        **BLOCK,
        "num_merged_tokens": SIZE,
        "num_prefix_tokens": [0, *SIZE],
    },
    layers.SelectingTransformerBlock: {
        **BLOCK,
        "keep_rate": SHARE,
        "num_prefix_tokens": SIZE,
    },
    layers.ParallelTransformerBlock: {**BLOCK, "num_branches": SIZE},
    layers.TokenMerging: {"num_merged_tokens": SIZE, "num_prefix_tokens": [0, *SIZE]},
    layers.TokenSelection: {"keep_rate": SHARE, "num_prefix_tokens": [0, *SIZE]},
    layers.DistillationHead: {"num_classes": SIZE, "trainable": TRAINABLE},
    layers.DeiTImageConverter: {
        "image_size": [*SIZE, (4, 6)],
        "crop_ratio": [1, 1.0, 0.5, np.float32(0.25)],
        "interpolation": ["bicubic", "bilinear", "nearest"],
        "mean": [0, 0.5, -0.5, (0.1, 0.2, 0.3), [0.1, 0.2, 0.3], np.array([0.1, 0.2, 0.3])],
        "std": [1, 0.5, (0.1, 0.2, 0.3), np.float32(0.5)],
        "data_format": FORMAT,
        "crop_to_aspect_ratio": SWITCH,
    },
    losses.HardDistillationLoss: {"reduction": REDUCTIONS},
    losses.SoftDistillationLoss: {
        "temperature": POSITIVE,
        "kl_reduction": ["mean", "batchmean"],
        "reduction": REDUCTIONS,
    },
    losses.AttentionDistillationLoss: {"reduction": REDUCTIONS},
    losses.FeatureDistillationLoss: {"beta": POSITIVE, "reduction": REDUCTIONS},
    losses.RelationDistillationLoss: {"num_relation_heads": SIZE, "reduction": REDUCTIONS},
    losses.MixedLabelBinaryCrossentropy: {
        "label_smoothing": RATE,
        "reduction": REDUCTIONS,
        "axis": [-1, 1],
    },
}


@functools.cache
def backbone(**arguments):
    return tiny_backbone(num_layers=1, use_distillation_token=True, **arguments)


@functools.cache
def student():
    return tiny_classifier({"num_layers": 1}, preprocessor=None)


@functools.cache
def droppy():
    return tiny_classifier({"num_layers": 1, "drop_path_rate": 0.1}, preprocessor=None)


@functools.cache
def teacher():
    return keras.Sequential(
        [keras.Input((12, 32, 3)), keras.layers.Flatten(), keras.layers.Dense(5)]
    )


MODELS = {
    models.DeiTBackbone: {
        "image_shape": [(8, 12, 4), [8, 12, 4]],
        "patch_size": [2, 4, (4, 2)],
        "num_layers": [1, 2],
        "num_heads": [1, 2],
        "hidden_dim": [4, np.int32(8)],
        "use_distillation_token": SWITCH,
        "position_scope": ["all", "patches"],
        "drop_path_schedule": ["linear", "constant"],
        "num_merged_tokens": [0, 1],
        "keep_rate": SHARE,
        "num_register_tokens": [0, 3],
        "position_grid_size": [None, 3, (2, 4)],
        "pad_images": SWITCH,
        "use_final_norm": SWITCH,
        "data_format": FORMAT,
        **{name: values for name, values in BLOCK.items() if name != "num_heads"},
    },
    models.DeiTImageClassifier: {
        "backbone": [backbone()],
        "num_classes": [2, np.int64(3)],
        "preprocessor": [None, layers.DeiTImageConverter((12, 32))],
        "pooling": ["token", "mean"],
        "use_distillation_head": [None, *SWITCH],
        "use_head_norm": SWITCH,
        "dropout_rate": RATE,
        "activation": [None, "softmax", keras.activations.sigmoid],
        "labels": [None, ["ant", "bee"], ("ant", "bee"), np.array(["ant", "bee"])],
        "trainable": [True, {"": True}],
        "quantization_config": [None, {}],
    },
    models.DeiTDistiller: {
        "student": [student()],
        "teacher": [None, teacher(), lambda images: images],
        "distillation_type": ["hard", "soft"],
        "alpha": [0, 1, 0.5, np.float32(0.25)],
        "temperature": POSITIVE,
        "kl_reduction": ["mean", "batchmean"],
        "save_teacher": SWITCH,
        "block_distillation": [None, [], ()],
    },
    models.BlockDistillation: {
        "loss": [losses.FeatureDistillationLoss(), keras.losses.MeanSquaredError()],
        "student_block": [0, -1, np.int64(3)],
        "teacher_block": [0, -1, np.int64(3)],
        "weight": POSITIVE,
        "projection_dim": [None, *SIZE],
    },
    models.CosubTrainer: {"classifier": [droppy()]},
}
AUGMENTATION = {
    "crop": ["resized", "padded"],
    "rand_augment": SWITCH,
    "three_augment": SWITCH,
    "color_jitter": NOT_NEGATIVE,
    "erasing_rate": [*RATE, 1.0],
    "mixup_alpha": NOT_NEGATIVE,
    "cutmix_alpha": NOT_NEGATIVE,
    "repeats": SIZE,
}
RECIPE = {
    "image_size": SIZE,
    "epochs": SIZE,
    "batch_size": SIZE,
    "optimizer": ["adamw", "lamb", "sgd"],
    "learning_rate": POSITIVE,
    "learning_rate_batch_size": [None, *SIZE],
    "warmup_epochs": [0, *SIZE],
    "warmup_learning_rate": NOT_NEGATIVE,
    "final_learning_rate": NOT_NEGATIVE,
    "weight_decay": NOT_NEGATIVE,
    "loss": ["categorical_crossentropy", "mixed_label_binary_crossentropy"],
    "label_smoothing": RATE,
    "drop_path_rate": RATE,
    "drop_path_schedule": ["linear", "constant"],
    "ema_momentum": [None, *RATE],
    "augmentation": [Augmentation(), Augmentation(repeats=3)],
    "head_learning_rate_factor": POSITIVE,
    "min_steps": [None, 0, *SIZE],
    "layer_decay": [None, 0.75, 1, np.float32(0.5)],
    "ema_warmup": SWITCH,
}


def fits(name, value):
    """Whether what is junk elsewhere fits this argument."""
    if name == "mean":
        return isinstance(value, int) and value == -3
    if name in ("student_block", "teacher_block"):
        return isinstance(value, int) and not isinstance(value, bool)
    if name == "block_distillation":
        return isinstance(value, (list, tuple)) and not value
    if name == "teacher":
        return callable(value)
    if name == "preprocessor":
        return isinstance(value, keras.layers.Layer)
    return False


def draw_arguments(data, arguments):
    """Arguments, and the names of those that do not fit."""
    bad = set(data.draw(st.lists(st.sampled_from(sorted(arguments)), max_size=2)))
    drawn = {}
    for name, good in arguments.items():
        drawn[name] = data.draw(JUNK if name in bad else st.sampled_from(good), label=name)
        # Any function is an activation. It comes back from a config if it is registered.
        hypothesis.assume(name != "activation" or name not in bad or not callable(drawn[name]))
    return drawn, {name for name in bad if not fits(name, drawn[name])}


def assert_named(error, names):
    assert any(f"`{name}`" in str(error) or f"{name}=" in str(error) for name in names), error


def assert_comes_back(instance):
    config = json.loads(json.dumps(instance.get_config()))
    twin = type(instance).from_config(instance.get_config())
    assert json.loads(json.dumps(twin.get_config())) == config


def check(cls, arguments, data):
    drawn, bad = draw_arguments(data, arguments)
    if bad:
        with pytest.raises(ValueError) as error:
            cls(**drawn)
        assert_named(error.value, arguments)
        return None
    try:
        return cls(**drawn)
    except ValueError as error:  # arguments that fit, but not each other
        assert_named(error, arguments)
    return None


def test_every_public_class_is_here():
    public = {
        value
        for module in (layers, losses, models, keras_deit.training)
        for value in map(functools.partial(getattr, module), module.__all__)
        if isinstance(value, type)
    }
    here = {*LAYERS, *MODELS, Augmentation, Recipe}
    # These read files or are results, and have tests of their own.
    assert {cls.__name__ for cls in public - here} <= {
        "GreedySoup",
        "ImageFolder",
        "TfdsImages",
        "TrainingCheckpoint",
    }


@pytest.mark.parametrize("cls", LAYERS)
@given(data=st.data())
def test_layers_and_losses(cls, data):
    instance = check(cls, LAYERS[cls], data)
    if instance is not None:
        assert_comes_back(instance)


@pytest.mark.parametrize("cls", MODELS)
@hypothesis.settings(max_examples=max(1, hypothesis.settings().max_examples // 4))
@given(data=st.data())
def test_models(cls, data):
    instance = check(cls, MODELS[cls], data)
    if instance is not None:
        assert_comes_back(instance)


@pytest.mark.parametrize(("cls", "arguments"), [(Augmentation, AUGMENTATION), (Recipe, RECIPE)])
@given(data=st.data())
def test_recipes(cls, arguments, data):
    instance = check(cls, arguments, data)
    if instance is not None:
        fields = {field.name: getattr(instance, field.name) for field in dataclasses.fields(cls)}
        assert cls(**fields) == instance
        json.dumps(dataclasses.asdict(instance))  # plain numbers, not NumPy's


@given(value=JUNK)
def test_the_momentum_of_a_recipe_that_is_overridden(value):
    recipe = keras_deit.training.RECIPES["deit"]
    with pytest.raises(ValueError) as error:
        recipe.build_optimizer(student(), 10, ema_momentum=value)
    assert str(error.value).startswith("`ema_momentum` must be ")
