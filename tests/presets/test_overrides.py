"""The overrides of from_preset: what trained weights follow, and what would make another model of
them.
"""

import inspect
import logging

import keras
import numpy as np
import pytest

from keras_deit.layers import DeiTImageConverter
from keras_deit.models import DeiTBackbone, DeiTImageClassifier
from keras_deit.presets.adaptation import resample_positions
from tests.helpers import (
    images,
    numpy,
    raises,
    randomize,
    raw_images,
    same_arrays,
    tiny_backbone,
    tiny_classifier,
)

pytestmark = pytest.mark.backend


def test_num_classes_makes_a_fresh_head_and_says_so(saved, rng, caplog):
    classifier, directory = saved
    with caplog.at_level(logging.INFO):
        loaded = DeiTImageClassifier.from_preset(directory, num_classes=7)
    assert caplog.messages == [
        f"The head for 7 classes has random weights: the preset {str(directory)!r} has no head of "
        "that size."
    ]
    assert loaded.labels is None
    x = images(rng)
    assert numpy(loaded(x)).shape == (4, 7)
    np.testing.assert_array_equal(numpy(loaded.backbone(x)), numpy(classifier.backbone(x)))
    assert abs(numpy(loaded.head.class_head.kernel)).max() <= 0.04
    caplog.clear()
    with caplog.at_level(logging.INFO):
        same = DeiTImageClassifier.from_preset(directory, num_classes=5)
    assert caplog.messages == [
        "The head for 5 classes and its labels come from the preset "
        f"{str(directory)!r}, which has the same number of classes. For your own classes, use "
        "`labels=`."
    ]
    assert same.labels == classifier.labels
    np.testing.assert_array_equal(numpy(same(x)), numpy(classifier(x)))


@pytest.mark.parametrize(
    "overrides",
    [{"use_distillation_token": True}, {"position_scope": "patches"}, {"position_scope": "all"}],
)
def test_image_shape_resamples_positions(overrides, rng, tmp_path):
    backbone = randomize(tiny_backbone(**overrides), rng)
    classifier = DeiTImageClassifier(
        backbone, 5, preprocessor=DeiTImageConverter((12, 32), crop_ratio=1.0)
    )
    classifier.save_to_preset(tmp_path / "preset")
    loaded = DeiTImageClassifier.from_preset(tmp_path / "preset", image_shape=(20, 16, 3))
    assert loaded.backbone.grid_size == (5, 2)
    assert loaded.preprocessor.image_size == (20, 16)
    assert loaded.preprocessor.crop_ratio == 1.0
    prefix = backbone.num_prefix_tokens if backbone.position_scope == "all" else 0
    expected = resample_positions(
        numpy(backbone.token_position_embedding.positions), prefix, (3, 4), (5, 2)
    )
    np.testing.assert_array_equal(
        numpy(loaded.backbone.token_position_embedding.positions), expected
    )
    for old, new in zip(backbone.weights, loaded.backbone.weights):
        if not new.path.endswith("/positions"):
            np.testing.assert_array_equal(numpy(old), numpy(new))
    assert loaded.predict(raw_images(rng), verbose=0).shape == (4, 5)
    same = DeiTImageClassifier.from_preset(tmp_path / "preset", image_shape=(12, 32, 3))
    x = images(rng)
    np.testing.assert_array_equal(numpy(same(x)), numpy(classifier(x)))


def test_dtype_and_rates_are_overrides(saved, rng):
    classifier, directory = saved
    half = DeiTImageClassifier.from_preset(directory, dtype="mixed_bfloat16")
    assert half.compute_dtype == half.backbone.compute_dtype == "bfloat16"
    x = raw_images(rng)
    expected = classifier.predict(x, verbose=0)
    np.testing.assert_allclose(
        half.predict(x, verbose=0).astype("float32"), expected, atol=0.2 * abs(expected).max()
    )
    # Saved with drop path and loaded without, and the other way: a rate of 0 has no seed to
    # restore.
    for rate in (0.0, 0.4):
        loaded = DeiTImageClassifier.from_preset(directory, drop_path_rate=rate, crop_ratio=1.0)
        assert loaded.backbone.drop_path_rate == rate
        assert loaded.preprocessor.crop_ratio == 1.0
        np.testing.assert_array_equal(
            numpy(loaded(images(rng := np.random.default_rng(5)))),
            numpy(classifier(images(np.random.default_rng(5)))),
        )


@pytest.fixture
def global_policy():
    """Sets Keras' global dtype policy until the test ends."""
    before = keras.config.dtype_policy()
    yield keras.config.set_dtype_policy
    keras.config.set_dtype_policy(before)


@pytest.mark.parametrize(
    ("saved_in", "policy"),
    [
        ("float32", "mixed_bfloat16"),
        pytest.param("bfloat16", "float32", marks=pytest.mark.slow),
        pytest.param("mixed_bfloat16", "bfloat16", marks=pytest.mark.slow),
    ],
)
def test_the_global_policy_is_that_of_what_is_loaded(
    saved_in, policy, global_policy, rng, tmp_path
):
    """A preset of one's own and one of the package alike; what the weights were saved in does not
    matter.
    """
    classifier = randomize(tiny_classifier({"dtype": saved_in}), rng)
    classifier.save_to_preset(tmp_path / "preset")
    expected = [numpy(variable).astype("float32") for variable in classifier.weights]
    global_policy(policy)
    for handle in (tmp_path / "preset", "deit_nano_distilled_patch4_32_digits"):
        loaded = DeiTImageClassifier.from_preset(handle)
        names = {
            layer.dtype_policy.name
            for layer in (loaded, loaded.backbone, loaded.head, *loaded.backbone.blocks)
        }
        assert names == {policy}
        assert loaded.preprocessor is None or loaded.preprocessor.dtype_policy.name == "float32"
        assert (
            DeiTImageClassifier.from_preset(handle, dtype="float32").dtype_policy.name == "float32"
        )
        assert (
            DeiTImageClassifier.from_preset(handle, load_weights=False).dtype_policy.name == policy
        )
    loaded = DeiTImageClassifier.from_preset(tmp_path / "preset")
    tolerance = 0.01 if "bfloat16" in (saved_in, policy) else 0
    for variable, value in zip(loaded.weights, expected):
        np.testing.assert_allclose(
            numpy(variable).astype("float32"), value, rtol=tolerance, atol=tolerance
        )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method:UserWarning")
def test_a_quantized_preset_keeps_its_policy(global_policy, rng, tmp_path):
    classifier = randomize(tiny_classifier(), rng)
    classifier.quantize("int8")
    classifier.save_to_preset(tmp_path / "preset")
    x = images(rng)
    expected = numpy(classifier(x))
    global_policy("mixed_bfloat16")
    same_arrays(DeiTImageClassifier.from_preset(tmp_path / "preset")(x), expected)


@pytest.mark.parametrize("shape, turned", [((12, 32, 3), (3, 12, 32)), ((3, 12, 32), (12, 32, 3))])
def test_another_data_format_turns_the_image_shape(shape, turned, rng, tmp_path):
    names = ("channels_first", "channels_last")
    own, other = names if shape[0] == 3 else reversed(names)
    backbone = randomize(tiny_backbone(image_shape=shape, data_format=own), rng)
    preprocessor = DeiTImageConverter((12, 32), data_format=own)
    classifier = DeiTImageClassifier(backbone, 5, preprocessor=preprocessor)
    classifier.save_to_preset(tmp_path / "preset")
    loaded = DeiTImageClassifier.from_preset(tmp_path / "preset", data_format=other)
    assert loaded.backbone.image_shape == turned
    assert (loaded.preprocessor.data_format, loaded.preprocessor.image_size) == (other, (12, 32))
    x = images(rng).transpose(0, 3, 1, 2) if own == "channels_first" else images(rng)
    axes = (0, 2, 3, 1) if own == "channels_first" else (0, 3, 1, 2)
    np.testing.assert_allclose(
        numpy(loaded.predict_on_batch(x.transpose(axes))),
        numpy(classifier.predict_on_batch(x)),
        atol=1e-5,
    )
    assert (
        DeiTBackbone.from_preset(
            tmp_path / "preset", data_format=other, load_weights=False
        ).image_shape
        == turned
    )
    assert DeiTBackbone.from_preset(tmp_path / "preset", data_format=own).image_shape == shape


def test_an_override_that_the_trained_weights_cannot_take(saved):
    _, directory = saved
    with pytest.raises(ValueError) as caught:
        DeiTImageClassifier.from_preset(directory, use_distillation_token=False)
    message = str(caught.value)
    assert message.startswith(
        f"The weights of preset {str(directory)!r} do not fit the model. They adapt to another "
        "`image_shape`, and to another `dtype` unless they are quantized; another `num_classes` "
        "gets a new head. Keep the preset's other arguments, or use `load_weights=False` for "
        "random weights.\nMissing: none\nUnexpected: none\nWrong shape: "
        "token_position_embedding/prefix_tokens is (2, 8), not (1, 8); "
    )
    assert (
        DeiTImageClassifier.from_preset(
            directory, num_layers=2, load_weights=False
        ).backbone.num_layers
        == 2
    )


# Other values than those of `saved`, of every argument of the backbone.
REFUSED = {
    "num_layers": 2,
    "num_heads": 4,
    "hidden_dim": 16,
    "intermediate_dim": 21,
    "position_scope": "patches",
    "use_class_token": False,
    "num_register_tokens": 1,
    "use_qk_norm": True,
    "activation": "relu",
    "use_gated_mlp": True,
    "use_pre_norm": True,
    "use_final_norm": False,
}
TAKEN = {
    "image_shape": (24, 16, 3),
    "patch_size": (2, 4),
    "use_distillation_token": True,
    "dropout_rate": 0.1,
    "attention_dropout_rate": 0.1,
    "drop_path_rate": 0.3,
    "drop_path_schedule": "constant",
    "layer_scale_init_value": 1e-5,
    "layer_norm_epsilon": 1e-5,
    "patch_dropout_rate": 0.5,
    "position_grid_size": (2, 3),
    "pad_images": True,
    "num_merged_tokens": 1,
    "keep_rate": 0.5,
    "remat": True,
    "data_format": "channels_last",
    "dtype": "bfloat16",
    "name": "mine",
    "trainable": False,
}
CHANGE_OUTPUTS = (
    "image_shape",
    "patch_size",
    "use_distillation_token",
    "num_merged_tokens",
    "keep_rate",
    "layer_norm_epsilon",  # a warning advises it: test_transformers.py
    "position_grid_size",
    "dtype",
)


@pytest.mark.slow
def test_what_would_make_another_model_of_trained_weights_is_refused(rng, tmp_path):
    """Half of these have no weights of their own: they changed the answers and said nothing."""
    # What `quantize` was told comes with the saved weights alone.
    assert {*REFUSED, *TAKEN} == set(inspect.signature(DeiTBackbone.__init__).parameters) - {
        "self",
        "quantization_config",
    }
    backbone = randomize(tiny_backbone(layer_scale_init_value=1e-4), rng)
    backbone.save_to_preset(tmp_path / "preset")
    for name, value in REFUSED.items():
        had = backbone.get_config()[name]
        with raises(
            f"The weights of the preset {str(tmp_path / 'preset')!r} were trained with "
            f"{name}={had!r}. Remove the override, or use "
            f"`load_weights=False` for random weights. Received: {name}={value!r}"
        ):
            DeiTBackbone.from_preset(tmp_path / "preset", **{name: value})
        if name != "hidden_dim":  # of sizes that fit nothing else
            other = DeiTBackbone.from_preset(
                tmp_path / "preset", load_weights=False, **{name: value}
            )
            assert other.get_config()[name] == value
    x = images(rng)
    expected = numpy(backbone(x))
    same = DeiTBackbone.from_preset(
        tmp_path / "preset", patch_size=[4, 8], num_heads=np.int64(2), layer_norm_epsilon=1e-6
    )
    np.testing.assert_array_equal(numpy(same(x)), expected)
    for name, value in TAKEN.items():
        loaded = DeiTBackbone.from_preset(tmp_path / "preset", **{name: value})
        if name not in CHANGE_OUTPUTS:
            np.testing.assert_array_equal(numpy(loaded(x)), expected)


def test_a_trained_head_keeps_its_pooling(rng, tmp_path):
    tiny_classifier({"use_distillation_token": False}).save_to_preset(tmp_path / "preset")
    with raises(
        f"The head of the preset {str(tmp_path / 'preset')!r} was trained with another `pooling`. "
        "Remove the override, or use `load_weights=False`. Received: pooling='mean'"
    ):
        DeiTImageClassifier.from_preset(tmp_path / "preset", pooling="mean")
    with raises(
        f"The head of the preset {str(tmp_path / 'preset')!r} was trained with another "
        "`use_head_norm`. Remove the override, or use `load_weights=False`. Received: "
        "use_head_norm=True"
    ):
        DeiTImageClassifier.from_preset(tmp_path / "preset", use_head_norm=True)
    assert (
        DeiTImageClassifier.from_preset(tmp_path / "preset", pooling="mean", num_classes=3).pooling
        == "mean"
    )


def test_an_override_that_nothing_takes(saved):
    _, directory = saved
    with pytest.raises(
        ValueError,
        match="received unknown overrides: sizes. Known overrides: activation, ",
    ):
        DeiTImageClassifier.from_preset(directory, sizes=3)
    meant = (
        r"unknown overrides: classes, image_size. Did you mean num_classes and image_shape\? "
        "Known overrides: activation, "
    )
    with pytest.raises(ValueError, match=meant):
        DeiTImageClassifier.from_preset(directory, image_size=64, classes=3)
    with pytest.raises(ValueError, match="received unknown overrides: num_classes. "):
        DeiTBackbone.from_preset(directory, num_classes=3)


def test_a_preprocessor_and_overrides_of_it_exclude_each_other(saved):
    _, directory = saved
    with pytest.raises(
        ValueError,
        match="cannot be overridden too. Received: preprocessor=None and {'crop_r",
    ):
        DeiTImageClassifier.from_preset(directory, preprocessor=None, crop_ratio=1.0)


def test_another_preprocessor_is_saved_but_must_be_passed(tmp_path, caplog):
    classifier = tiny_classifier(preprocessor=keras.layers.Rescaling(1 / 255))
    classifier.save_to_preset(tmp_path / "preset")
    assert (
        "`from_preset` builds no preprocessor but `DeiTImageConverter` from a file. It will need "
        "`preprocessor=` with your Rescaling." in caplog.text
    )
    with raises(
        f"{tmp_path / 'preset' / 'preprocessor.json'} may contain only a `DeiTImageConverter`. Use "
        "`preprocessor=` with your own layer, or `preprocessor=None`. Received: 'Rescaling'"
    ):
        DeiTImageClassifier.from_preset(tmp_path / "preset")
    for own in (None, keras.layers.Rescaling(1 / 255)):
        loaded = DeiTImageClassifier.from_preset(
            tmp_path / "preset", image_shape=(8, 16, 3), preprocessor=own
        )
        assert loaded.preprocessor is own


def test_one_of_two_heads_is_another_model(tmp_path):
    tiny_classifier().save_to_preset(tmp_path / "own")
    with raises(
        f"The preset {str(tmp_path / 'own')!r} was trained with two heads, whose mean is the "
        "output. Remove `use_distillation_head=False`, or read one head from `token_logits`."
    ):
        DeiTImageClassifier.from_preset(tmp_path / "own", use_distillation_head=False)


def test_an_override_that_says_what_is_there_already_changes_nothing(rng, tmp_path):
    one = randomize(tiny_classifier(use_distillation_head=False), rng)
    one.save_to_preset(tmp_path / "own")
    assert list(
        DeiTImageClassifier.from_preset(tmp_path / "own", use_distillation_token=True).token_logits
    ) == ["class"]
