"""Folders of transformers as presets."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from keras_deit.models import DeiTBackbone, DeiTImageClassifier
from tests.helpers import (
    images,
    numpy,
    raises,
    randomize,
    raw_images,
    same_arrays,
    tiny_classifier,
)
from tests.hub_layouts import (
    LABELS,
    deit_processor,
    transformers_config,
    transformers_folder,
    write_folder,
)

pytestmark = pytest.mark.backend


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize(
    ("architecture", "distilled", "two_heads"),
    [
        ("DeiTForImageClassificationWithTeacher", True, True),
        ("DeiTForImageClassification", True, False),
        ("ViTForImageClassification", False, False),
    ],
)
def test_a_folder_of_transformers(architecture, distilled, two_heads, version, rng, tmp_path):
    backbone = {"use_distillation_token": distilled, "layer_norm_epsilon": 1e-12}
    expected = randomize(tiny_classifier(backbone, use_distillation_head=two_heads), rng)
    folder = transformers_folder(tmp_path / "mine", expected, architecture, version)
    classifier = DeiTImageClassifier.from_preset(folder)
    x = images(rng)
    np.testing.assert_array_equal(numpy(classifier(x)), numpy(expected(x)))
    assert list(classifier.token_logits) == (["class", "distillation"] if two_heads else ["class"])
    assert classifier.labels == LABELS
    assert classifier.backbone.layer_norm_epsilon == 1e-12
    converter = classifier.preprocessor
    assert (converter.image_size, converter.crop_ratio, converter.crop_to_aspect_ratio) == (
        (12, 32),
        0.8,
        False,
    )
    assert (converter.interpolation, converter.mean) == ("bicubic", (0.5, 0.5, 0.5))
    assert classifier.predict(raw_images(rng), verbose=0).shape == (4, 5)


@pytest.mark.parametrize("architecture", ["DeiTModel", "ViTModel"])
def test_a_backbone_of_transformers_leaves_its_pooler(architecture, rng, tmp_path, caplog):
    distilled = architecture.startswith("DeiT")
    backbone = {"use_distillation_token": distilled, "layer_norm_epsilon": 1e-12}
    expected = randomize(tiny_classifier(backbone, use_distillation_head=False), rng)
    folder = transformers_folder(tmp_path / "mine", expected, architecture, 4)
    with caplog.at_level("INFO"):
        backbone = DeiTBackbone.from_preset(folder)
    x = images(rng)
    np.testing.assert_array_equal(numpy(backbone(x)), numpy(expected.backbone(x)))
    assert any(
        "because `DeiTBackbone` does not use them: pooler.dense.bias, pooler.dense.weight"
        in message
        for message in caplog.messages
    )
    with pytest.raises(ValueError, match="has no head. Use `num_classes=`"):
        DeiTImageClassifier.from_preset(folder)


def test_defaults_that_transformers_leaves_out(tmp_path):
    folder = write_folder(
        tmp_path / "mine",
        {},
        config={"model_type": "vit", "architectures": ["ViTForImageClassification"]},
    )
    backbone = DeiTBackbone.from_preset(folder, load_weights=False, num_layers=1)
    assert (backbone.image_shape, backbone.hidden_dim, backbone.num_heads) == (
        (224, 224, 3),
        768,
        12,
    )
    classifier = DeiTImageClassifier.from_preset(folder, load_weights=False, num_layers=1)
    assert (classifier.num_classes, classifier.preprocessor, classifier.labels) == (
        2,
        None,
        ["LABEL_0", "LABEL_1"],
    )


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"hidden_act": "mish", "rope_theta": 10000.0},
            "hidden_act='mish' (supported: 'gelu' or 'gelu_new' or 'gelu_pytorch_tanh' or "
            "'quick_gelu' or 'silu' or 'swish' or 'relu'); rope_theta=10000.0 (supported: 100.0)",
        ),
        (
            {"model_type": "swin"},
            "model_type='swin' (supported: 'deit' or 'vit' or 'dinov3_vit' or 'dinov2' or "
            "'dinov2_with_registers')",
        ),
    ],
)
def test_a_model_of_transformers_with_other_layers_is_refused(changes, problem, tmp_path):
    config = transformers_config(
        "ViTForImageClassification", tiny_classifier().backbone, LABELS, **changes
    )
    folder = write_folder(tmp_path / "other", {}, config=config)
    with raises(f"{folder / 'config.json'} has unsupported settings: {problem}."):
        DeiTBackbone.from_preset(folder)


@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        # As the hub's older files say it.
        (
            {"size": 438, "crop_size": 384, "do_center_crop": True, "resample": 3},
            {
                "image_size": (384, 384),
                "crop_ratio": 384 / 438,
                "crop_to_aspect_ratio": False,
                "interpolation": "bicubic",
            },
        ),
        (
            {
                "size": {"shortest_edge": 256},
                "crop_size": {"height": 224, "width": 224},
                "do_center_crop": True,
                "resample": 3,
            },
            {
                "image_size": (224, 224),
                "crop_ratio": 0.875,
                "crop_to_aspect_ratio": True,
                "interpolation": "bicubic",
            },
        ),
        (
            {"size": {"height": 224, "width": 224}, "resample": 2, "do_normalize": False},
            {
                "image_size": (224, 224),
                "crop_ratio": 1.0,
                "crop_to_aspect_ratio": False,
                "mean": (0.0,),
                "std": (1.0,),
            },
        ),
    ],
)
def test_processors_of_transformers(processor, expected, tmp_path):
    config = {
        "model_type": "vit",
        "architectures": ["ViTForImageClassification"],
        "image_size": expected["image_size"],
    }
    processor = {"do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, **processor}
    folder = write_folder(tmp_path / "mine", {}, config=config, preprocessor_config=processor)
    converter = DeiTImageClassifier.from_preset(
        folder, load_weights=False, num_layers=1
    ).preprocessor
    assert {name: getattr(converter, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"do_resize": False}, "do_resize=False (supported: True)"),
        (
            {"rescale_factor": 1 / 127.5},
            "rescale_factor=0.00784313725490196 (supported: 0.00392156862745098)",
        ),
        ({"resample": 1}, "resample=1 (supported: 0 or 2 or 3)"),
        (
            {"size": {"height": 20, "width": 40}},
            "the crop (12, 32) is larger than the resized image (20, 40), or has another aspect "
            "ratio",
        ),
        (
            {"size": {"height": 6, "width": 16}},
            "the crop (12, 32) is larger than the resized image (6, 16), or has another aspect "
            "ratio",
        ),
        (
            {"size": {"shortest_edge": 20}, "do_center_crop": False},
            "do_center_crop=False (supported: True)",
        ),
    ],
)
def test_preprocessing_that_the_converter_does_not_have_is_refused(changes, problem, tmp_path):
    config = transformers_config("ViTForImageClassification", tiny_classifier().backbone, LABELS)
    folder = write_folder(
        tmp_path / "other", {}, config=config, preprocessor_config=deit_processor(**changes)
    )
    with raises(
        f"{folder / 'preprocessor_config.json'} has preprocessing that `DeiTImageConverter` does "
        f"not support, so use your own `preprocessor=`: {problem}."
    ):
        DeiTImageClassifier.from_preset(folder, load_weights=False)
    assert (
        DeiTImageClassifier.from_preset(folder, load_weights=False, preprocessor=None).preprocessor
        is None
    )
    assert DeiTBackbone.from_preset(folder, load_weights=False).num_layers == 3


def test_pickles_are_never_opened(rng, tmp_path):
    """A folder may hold both, or a pickle alone."""
    expected = randomize(
        tiny_classifier({"use_distillation_token": False, "layer_norm_epsilon": 1e-12}), rng
    )
    folder = transformers_folder(tmp_path / "mine", expected, "ViTForImageClassification", 4)
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch opened'\ntR.")
    DeiTImageClassifier.from_preset(folder)
    (folder / "model.safetensors").unlink()
    with raises(
        f"{folder / 'model.safetensors'} does not exist. Pickles (.bin, .pth) are not opened, "
        "because opening one can run code. Save the weights as safetensors (timm: "
        "`save_for_hf(..., safe_serialization=True)`), or convert the file once with "
        "tools/convert_checkpoint.py."
    ):
        DeiTImageClassifier.from_preset(folder)


def test_a_safetensors_file_cut_short(rng, tmp_path):
    expected = tiny_classifier({"use_distillation_token": False})
    folder = transformers_folder(tmp_path / "mine", expected, "ViTForImageClassification", 4)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(
        ValueError,
        match=r"model.safetensors is truncated or not a safetensors file: .* Copy or download it again.",
    ):
        DeiTImageClassifier.from_preset(folder)


def test_a_copy_of_facebooks_files_gets_a_warning(tmp_path, caplog):
    config = {
        "model_type": "vit",
        "architectures": ["ViTForImageClassification"],
        "id2label": {str(i): "?" for i in range(1000)},
    }
    folder = write_folder(tmp_path / "copy", {}, config=config)
    DeiTBackbone.from_preset(folder, load_weights=False, num_layers=1)
    assert any("use layer_norm_epsilon=1e-6" in message for message in caplog.messages)


def test_the_epsilon_that_the_warning_advises_is_taken(rng, tmp_path):
    classifier = randomize(
        tiny_classifier({"use_distillation_token": False}, preprocessor=None, labels=None), rng
    )
    classifier.save_to_preset(tmp_path / "preset")
    backbone = DeiTBackbone.from_preset(tmp_path / "preset", layer_norm_epsilon=1e-3)
    assert backbone.layer_norm_epsilon == 1e-3


@pytest.mark.parametrize(
    ("name", "change", "problem"),
    [
        (
            "config",
            {"id2label": ["a", "b"]},
            "'id2label' in {file} must be a JSON object from the class indices, 0 and up, to "
            "names. Restore the file. Received: ['a', 'b']",
        ),
        (
            "config",
            {"id2label": {"0": "a", "7": "b"}},
            "'id2label' in {file} must be a JSON object from the class indices, 0 and up, to "
            "names. Restore the file. Received: {{'0': 'a', '7': 'b'}}",
        ),
        (
            "config",
            {"num_hidden_layers": 10**9},
            "'num_hidden_layers' in {file} must be an integer from 1 to 1,000. Restore the file. "
            "Received: 1000000000",
        ),
        (
            "config",
            {"hidden_size": "768"},
            "'hidden_size' in {file} must be an integer from 1 to 262,144. Restore the file. "
            "Received: '768'",
        ),
        (
            "config",
            {"hidden_size": 2**18, "intermediate_size": 2**18},
            "{file} must describe a model of the size of its weights. Restore the file. "
            "Received: 4,948,088,324,096 parameters, where there can be at most 8,589,934,592",
        ),
        (
            "config",
            {"architectures": "ViTModel"},
            "'architectures' in {file} must be a list of 0 to 8 items, each text. Restore the "
            "file. Received: 'ViTModel'",
        ),
        ("preprocessor_config", [], "{file} must be a JSON object. Received: []"),
        (
            "preprocessor_config",
            {"size": {"longest_edge": 256}},
            "{file} must be a JSON object with 'height'. Restore the file.",
        ),
        (
            "preprocessor_config",
            {"image_mean": [None]},
            "'image_mean' in {file} must be a number, or a list of one number for each channel. "
            "Restore the file. Received: [None]",
        ),
    ],
)
def test_a_config_of_transformers_that_lacks_something(name, change, problem, tmp_path):
    config = {"model_type": "vit", "architectures": ["ViTForImageClassification"]}
    files = {"config": config}
    if name == "config":
        config.update(change)
    else:
        files[name] = change
    folder = write_folder(tmp_path / "mine", {}, **files)
    with raises(problem.format(file=folder / f"{name}.json")):
        DeiTImageClassifier.from_preset(folder, load_weights=False, num_layers=1)


INDEX = "model.safetensors.index.json"


def shards(folder, change=lambda weight_map: None):
    """Divides the weights of a folder into two files."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for number, names in enumerate((sorted(tensors)[::2], sorted(tensors)[1::2]), start=1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in names}, folder / file)
        weight_map.update(dict.fromkeys(names, file))
    change(weight_map)
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))


def test_weights_in_several_files(rng, tmp_path):
    expected = randomize(tiny_classifier(), rng)
    folder = transformers_folder(
        tmp_path / "mine", expected, "DeiTForImageClassificationWithTeacher", 4
    )
    shards(folder)
    same_arrays(DeiTImageClassifier.from_preset(folder).get_weights(), expected.get_weights())


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            lambda weights: weights.update({"deit.layernorm.bias": "../secret.safetensors"}),
            "'weight_map' in {file} must be a JSON object whose values are each the name of a "
            "file like model-00001-of-00002.safetensors. Restore the file. Received: {{",
        ),
        (
            lambda weights: weights.update({"deit.layernorm.bias": "lost.safetensors"}),
            "{folder}/lost.safetensors does not exist. {file} lists it. Copy or download it again.",
        ),
        (
            lambda weights: weights.pop("deit.layernorm.bias"),
            "{file} must list the tensors of its files, no more and no fewer. Copy or download "
            "all of them again. Different: deit.layernorm.bias",
        ),
    ],
)
def test_an_index_that_does_not_fit_its_files(change, problem, tmp_path):
    folder = transformers_folder(
        tmp_path / "mine", tiny_classifier(), "DeiTForImageClassificationWithTeacher", 4
    )
    shards(folder, change)
    with pytest.raises(ValueError) as caught:
        DeiTImageClassifier.from_preset(folder)
    assert str(caught.value).startswith(problem.format(folder=folder, file=folder / INDEX))
