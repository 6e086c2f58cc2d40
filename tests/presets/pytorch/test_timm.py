"""Folders of timm as presets."""

import numpy as np
import pytest

from keras_deit.models import DeiTBackbone, DeiTImageClassifier
from tests.helpers import images, numpy, raises
from tests.hub_layouts import (
    SIZES,
    classifier_of,
    timm_config,
    timm_tensors,
    write_folder,
)

pytestmark = pytest.mark.backend

TIMM = {
    "deit_tiny_patch16_224": {},
    "deit_tiny_distilled_patch16_224": {"use_distillation_token": True},
    "deit3_small_patch16_224": {"position_scope": "patches", "layer_scale_init_value": 1e-4},
}


def tiny_classifier_around(backbone):
    return DeiTImageClassifier(backbone, 5)


@pytest.mark.parametrize("architecture", TIMM)
def test_a_folder_of_timm(architecture, small_catalog, rng, tmp_path):
    expected = classifier_of(
        rng, **{**SIZES, "use_distillation_token": False, **TIMM[architecture]}
    )
    folder = write_folder(
        tmp_path / "mine", timm_tensors(expected), config=timm_config(architecture, (32, 48), 5)
    )
    x = images(rng, shape=(32, 48, 3))
    classifier = DeiTImageClassifier.from_preset(folder)
    np.testing.assert_array_equal(numpy(classifier(x)), numpy(expected(x)))
    np.testing.assert_array_equal(
        numpy(DeiTBackbone.from_preset(str(folder))(x)), numpy(expected.backbone(x))
    )
    converter = classifier.preprocessor
    assert (converter.image_size, converter.crop_ratio, converter.crop_to_aspect_ratio) == (
        (32, 48),
        0.9,
        True,
    )
    assert classifier.labels is None


def test_labels_of_timm_and_of_imagenet(small_catalog, rng, tmp_path):
    tensors = timm_tensors(classifier_of(rng, **{**SIZES, "use_distillation_token": False}))
    described = timm_config(
        "deit_tiny_patch16_224.fb_in1k",
        (32, 48),
        5,
        label_names=["n1", "n2", "n3", "n4", "n5"],
        label_descriptions={"n1": "ant", "n3": "cat"},
    )
    folder = write_folder(tmp_path / "described", tensors, config=described)
    assert DeiTImageClassifier.from_preset(folder, load_weights=False).labels == [
        "ant",
        "n2",
        "cat",
        "n4",
        "n5",
    ]
    folder = write_folder(
        tmp_path / "imagenet", tensors, config=timm_config("deit_tiny_patch16_224", (32, 48), 1000)
    )
    labels = DeiTImageClassifier.from_preset(folder, load_weights=False).labels
    assert len(labels) == 1000
    assert (labels[0], labels[285], labels[999][:13]) == (
        "tench, Tinca tinca",
        "Egyptian cat",
        "toilet tissue",
    )


def test_a_backbone_of_timm_and_one_channel(small_catalog, rng, tmp_path):
    expected = classifier_of(
        rng, **{**SIZES, "image_shape": (32, 48, 1), "use_distillation_token": False}
    ).backbone
    tensors = {
        name: array
        for name, array in timm_tensors(tiny_classifier_around(expected)).items()
        if "head" not in name
    }
    config = timm_config("deit_tiny_patch16_224", (32, 48), 0, channels=1)
    config["pretrained_cfg"].update(mean=[0.449], std=[0.226])
    folder = write_folder(tmp_path / "features", tensors, config=config)
    x = images(rng, shape=(32, 48, 1))
    np.testing.assert_array_equal(numpy(DeiTBackbone.from_preset(folder)(x)), numpy(expected(x)))
    assert DeiTImageClassifier.from_preset(folder, num_classes=3).preprocessor.mean == (0.449,)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"model_args": {"global_pool": "max", "dynamic_img_size": True, "img_size": None}},
            "global_pool='max' (supported: 'token' or 'avg' or 'map')",
        ),
        (
            {"model_args": {"scale_attn_norm": True, "proj_bias": False}},
            "scale_attn_norm=True (supported: none); proj_bias=False (supported: none)",
        ),
        (
            {"model_args": {"pool_include_prefix": True}, "global_pool": "prr"},
            "global_pool='prr' (supported: 'token' or 'avg' or 'map'); pool_include_prefix=True "
            "(supported: False)",
        ),
    ],
)
def test_a_timm_model_of_other_layers_is_refused(changes, problem, tmp_path):
    folder = write_folder(
        tmp_path / "other", {}, config=timm_config("deit_tiny_patch16_224", (32, 48), 5, **changes)
    )
    with raises(f"{folder / 'config.json'} has unsupported settings: {problem}."):
        DeiTBackbone.from_preset(folder)


@pytest.mark.parametrize(
    "name",
    [
        "resnet50",
        "vit_base_patch16_rpn_224",
        "vit_small_patch16_18x2_224",
        "vit_base_patch16_radio_v3",
        "vit_small_r26_s32_224",
        "eva02_small_patch14_224",
    ],
)
def test_an_architecture_of_other_layers_is_refused_by_name(name, tmp_path):
    folder = write_folder(tmp_path / "other", {}, config=timm_config(name, (32, 48), 5))
    with raises(
        f"{folder / 'config.json'} has timm's architecture {name!r}, which is not supported. "
        "Supported: vit_{size}_patch{8,14,16,32}_{pixels} with the parts plus, reg, gap, map, "
        "dinov2, tipsv2, siglip, clip and quickgelu; flexivit_{small,base,large}; "
        "vit_{size}_patch16_dinov3; eva_large_patch14_{pixels}; deit_*; deit3_*."
    ):
        DeiTBackbone.from_preset(folder)


def test_a_tensor_of_another_shape_is_named_as_in_the_file(small_catalog, rng, tmp_path):
    tensors = timm_tensors(classifier_of(rng, **{**SIZES, "use_distillation_token": False}))
    folder = write_folder(
        tmp_path / "mine", tensors, config=timm_config("deit_tiny_patch16_224", (32, 32), 5)
    )
    with raises(
        f"The tensors of {folder / 'model.safetensors'} (here under timm's names) do not match the "
        "architecture.\nMissing: none\nUnexpected: none\nWrong shape: pos_embed is (1, 7, 8), not "
        "(1, 5, 8)"
    ):
        DeiTImageClassifier.from_preset(folder, image_shape=(64, 64, 3))


def test_half_precision_files_load_into_float32(small_catalog, rng, tmp_path):
    import ml_dtypes

    expected = classifier_of(rng, **{**SIZES, "use_distillation_token": False})
    tensors = {
        name: array.astype(ml_dtypes.bfloat16) for name, array in timm_tensors(expected).items()
    }
    folder = write_folder(
        tmp_path / "half", tensors, config=timm_config("deit_tiny_patch16_224", (32, 48), 5)
    )
    classifier = DeiTImageClassifier.from_preset(folder, image_shape=(48, 48, 3))
    kernel = numpy(classifier.head.kernel)
    assert kernel.dtype == "float32"
    np.testing.assert_array_equal(kernel, tensors["head.weight"].astype("float32").T)


def test_a_second_head_starts_as_the_first(small_catalog, rng, tmp_path, caplog):
    """A plain checkpoint into a distilled model, from timm's folder and from our own."""
    plain = classifier_of(rng, **{**SIZES, "use_distillation_token": False})
    write_folder(
        tmp_path / "timm",
        timm_tensors(plain),
        config=timm_config("deit_tiny_patch16_224", (32, 48), 5),
    )
    plain.save_to_preset(tmp_path / "own")
    for name in ("timm", "own"):
        caplog.clear()
        with caplog.at_level("INFO"):
            classifier = DeiTImageClassifier.from_preset(
                tmp_path / name, use_distillation_token=True
            )
        assert sum("starts as a copy" in message for message in caplog.messages) == 2
        assert list(classifier.token_logits) == ["class", "distillation"]
        for head in (classifier.head.class_head, classifier.head.distillation_head):
            np.testing.assert_array_equal(numpy(head.kernel), numpy(plain.head.kernel))
            np.testing.assert_array_equal(numpy(head.bias), numpy(plain.head.bias))
        caplog.clear()
        with caplog.at_level("INFO"):
            one = DeiTImageClassifier.from_preset(
                tmp_path / name,
                use_distillation_token=True,
                use_distillation_head=False,
                name="one",
            )
        assert list(one.token_logits) == ["class"]
        np.testing.assert_array_equal(numpy(one.head.kernel), numpy(plain.head.kernel))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            {"pretrained_cfg": None},
            "must be a JSON object with 'input_size'. Restore the file.",
        ),
        (
            {"pretrained_cfg": {"input_size": [3, 32, 48]}},
            "must be a JSON object with 'crop_pct'. Restore the file.",
        ),
    ],
)
def test_a_config_of_timm_that_lacks_something(change, problem, tmp_path):
    folder = write_folder(
        tmp_path / "mine", {}, config=timm_config("deit_tiny_patch16_224", (32, 48), 5, **change)
    )
    with raises(f"{folder / 'config.json'} {problem}"):
        DeiTImageClassifier.from_preset(folder, load_weights=False)


def test_labels_that_timm_writes_when_it_saves_a_loaded_model(tmp_path):
    config = timm_config("deit_tiny_patch16_224", (32, 48), 1000)
    config["pretrained_cfg"]["label_names"] = [f"x{index}" for index in range(1000)]
    folder = write_folder(tmp_path / "mine", {}, config=config)
    assert DeiTImageClassifier.from_preset(folder, load_weights=False, num_layers=1).labels[:2] == [
        "x0",
        "x1",
    ]
