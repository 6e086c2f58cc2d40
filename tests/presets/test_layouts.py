"""Folders of timm and transformers, and repositories of the hub, as presets."""

import json
import pathlib

import numpy as np
import pytest
from safetensors.numpy import save

from keras_deit.models import DeiTBackbone, DeiTImageClassifier
from keras_deit.presets import catalog
from tests.helpers import images, numpy, raises, randomize, raw_images, tiny_classifier
from tests.hub_layouts import (
    deit_processor,
    timm_config,
    timm_tensors,
    transformers_config,
    transformers_names,
    write_folder,
)

LABELS = ["ant", "bee", "cat", "dog", "eel"]
TIMM = {
    "deit_tiny_patch16_224": {},
    "deit_tiny_distilled_patch16_224": {"use_distillation_token": True},
    "deit3_small_patch16_224": {"position_scope": "patches", "layer_scale_init_value": 1e-4},
}
SIZES = {"image_shape": (32, 48, 3), "patch_size": 16, "num_layers": 2, "num_heads": 2, "hidden_dim": 8, "intermediate_dim": 32}


@pytest.fixture
def small_catalog(monkeypatch):
    for size in ("tiny", "small"):
        monkeypatch.setitem(catalog.SIZES, size, (2, 2, 8))


def classifier_of(rng, num_classes=5, **backbone):
    return randomize(tiny_classifier(backbone, num_classes=num_classes, labels=None, preprocessor=None), rng)


@pytest.mark.parametrize("architecture", TIMM)
def test_a_folder_of_timm(architecture, small_catalog, rng, tmp_path):
    expected = classifier_of(rng, **{**SIZES, "use_distillation_token": False, **TIMM[architecture]})
    folder = write_folder(tmp_path / "mine", timm_tensors(expected), config=timm_config(architecture, (32, 48), 5))
    x = images(rng, shape=(32, 48, 3))
    classifier = DeiTImageClassifier.from_preset(folder)
    np.testing.assert_array_equal(numpy(classifier(x)), numpy(expected(x)))
    np.testing.assert_array_equal(numpy(DeiTBackbone.from_preset(str(folder))(x)), numpy(expected.backbone(x)))
    converter = classifier.preprocessor
    assert (converter.image_size, converter.crop_ratio, converter.crop_to_aspect_ratio) == ((32, 48), 0.9, True)
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
    assert DeiTImageClassifier.from_preset(folder, load_weights=False).labels == ["ant", "n2", "cat", "n4", "n5"]
    folder = write_folder(tmp_path / "imagenet", tensors, config=timm_config("deit_tiny_patch16_224", (32, 48), 1000))
    labels = DeiTImageClassifier.from_preset(folder, load_weights=False).labels
    assert len(labels) == 1000
    assert (labels[0], labels[285], labels[999][:13]) == ("tench, Tinca tinca", "Egyptian cat", "toilet tissue")


def test_a_backbone_of_timm_and_one_channel(small_catalog, rng, tmp_path):
    expected = classifier_of(rng, **{**SIZES, "image_shape": (32, 48, 1), "use_distillation_token": False}).backbone
    tensors = {name: array for name, array in timm_tensors(tiny_classifier_around(expected)).items() if "head" not in name}
    config = timm_config("deit_tiny_patch16_224", (32, 48), 0, channels=1)
    config["pretrained_cfg"].update(mean=[0.449], std=[0.226])
    folder = write_folder(tmp_path / "features", tensors, config=config)
    x = images(rng, shape=(32, 48, 1))
    np.testing.assert_array_equal(numpy(DeiTBackbone.from_preset(folder)(x)), numpy(expected(x)))
    assert DeiTImageClassifier.from_preset(folder, num_classes=3).preprocessor.mean == (0.449,)


def tiny_classifier_around(backbone):
    return DeiTImageClassifier(backbone, 5)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"model_args": {"global_pool": "avg"}}, "global_pool='avg' (supported: 'token')"),
        ({"model_args": {"class_token": False}}, "class_token=False (supported: none)"),
        ({"model_args": {"dynamic_img_size": True, "img_size": None, "qkv_bias": False}}, "qkv_bias=False (supported: none)"),
    ],
)
def test_a_timm_model_of_other_layers_is_refused(changes, problem, tmp_path):
    folder = write_folder(tmp_path / "other", {}, config=timm_config("deit_tiny_patch16_224", (32, 48), 5, **changes))
    with raises(f"{folder / 'config.json'} describes a model that is no DeiT: {problem}."):
        DeiTBackbone.from_preset(folder)


def test_another_architecture_of_timm(tmp_path):
    folder = write_folder(tmp_path / "other", {}, config=timm_config("resnet50", (32, 48), 5))
    with pytest.raises(
        ValueError, match="is of timm's architecture 'resnet50', which is no DeiT. Known: deit_tiny_patch16_224"
    ):
        DeiTBackbone.from_preset(folder)


def transformers_folder(path, classifier, architecture, version, **changes):
    model = "deit" if architecture.startswith("DeiT") else "vit"
    heads = ("cls_classifier", "distillation_classifier") if "Teacher" in architecture else ("classifier",)
    tensors = transformers_names(timm_tensors(classifier), version, model, heads)
    if architecture.endswith("Model"):
        tensors = {
            name.removeprefix(f"{model}."): array for name, array in tensors.items() if not name.startswith("classifier")
        }
        tensors["pooler.dense.weight"], tensors["pooler.dense.bias"] = np.ones((8, 8), "float32"), np.ones(8, "float32")
    config = transformers_config(architecture, classifier.backbone, LABELS, **changes)
    return write_folder(path, tensors, config=config, preprocessor_config=deit_processor())


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
    assert (converter.image_size, converter.crop_ratio, converter.crop_to_aspect_ratio) == ((12, 32), 0.8, False)
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
    assert any("as DeiT has none: pooler.dense.weight, pooler.dense.bias" in message for message in caplog.messages)
    with pytest.raises(ValueError, match="is a backbone without a head. Give `num_classes=`"):
        DeiTImageClassifier.from_preset(folder)


def test_defaults_that_transformers_leaves_out(tmp_path):
    folder = write_folder(tmp_path / "mine", {}, config={"model_type": "vit", "architectures": ["ViTForImageClassification"]})
    backbone = DeiTBackbone.from_preset(folder, load_weights=False, num_layers=1)
    assert (backbone.image_shape, backbone.hidden_dim, backbone.num_heads) == ((224, 224, 3), 768, 12)
    classifier = DeiTImageClassifier.from_preset(folder, load_weights=False, num_layers=1)
    assert (classifier.num_classes, classifier.preprocessor, classifier.labels) == (2, None, ["LABEL_0", "LABEL_1"])


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"hidden_act": "gelu_new"}, "hidden_act='gelu_new' (supported: 'gelu')"),
        ({"qkv_bias": False}, "qkv_bias=False (supported: True)"),
        ({"model_type": "swin"}, "model_type='swin' (supported: 'deit' or 'vit')"),
    ],
)
def test_a_model_of_transformers_with_other_layers_is_refused(changes, problem, tmp_path):
    config = transformers_config("ViTForImageClassification", tiny_classifier().backbone, LABELS, **changes)
    folder = write_folder(tmp_path / "other", {}, config=config)
    with raises(f"{folder / 'config.json'} describes a model that is no DeiT: {problem}."):
        DeiTBackbone.from_preset(folder)


@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        # As the hub's older files say it.
        (
            {"size": 438, "crop_size": 384, "do_center_crop": True, "resample": 3},
            {"image_size": (384, 384), "crop_ratio": 384 / 438, "crop_to_aspect_ratio": False, "interpolation": "bicubic"},
        ),
        (
            {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}, "do_center_crop": True, "resample": 3},
            {"image_size": (224, 224), "crop_ratio": 0.875, "crop_to_aspect_ratio": True, "interpolation": "bicubic"},
        ),
        (
            {"size": {"height": 224, "width": 224}, "resample": 2, "do_normalize": False},
            {"image_size": (224, 224), "crop_ratio": 1.0, "crop_to_aspect_ratio": False, "mean": (0.0,), "std": (1.0,)},
        ),
    ],
)
def test_processors_of_transformers(processor, expected, tmp_path):
    config = {"model_type": "vit", "architectures": ["ViTForImageClassification"], "image_size": expected["image_size"]}
    processor = {"do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, **processor}
    folder = write_folder(tmp_path / "mine", {}, config=config, preprocessor_config=processor)
    converter = DeiTImageClassifier.from_preset(folder, load_weights=False, num_layers=1).preprocessor
    assert {name: getattr(converter, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"do_resize": False}, "do_resize=False (supported: True)"),
        ({"rescale_factor": 1 / 127.5}, "rescale_factor=0.00784313725490196 (supported: 0.00392156862745098)"),
        ({"resample": 1}, "resample=1 (supported: 0 or 2 or 3)"),
        ({"size": {"height": 20, "width": 40}}, "a crop of (12, 32) from (20, 40), which is smaller or of another shape"),
        ({"size": {"height": 6, "width": 16}}, "a crop of (12, 32) from (6, 16), which is smaller or of another shape"),
        ({"size": {"shortest_edge": 20}, "do_center_crop": False}, "do_center_crop=False (supported: True)"),
    ],
)
def test_preprocessing_that_the_converter_does_not_have_is_refused(changes, problem, tmp_path):
    config = transformers_config("ViTForImageClassification", tiny_classifier().backbone, LABELS)
    folder = write_folder(tmp_path / "other", {}, config=config, preprocessor_config=deit_processor(**changes))
    with raises(
        f"{folder / 'preprocessor_config.json'} describes preprocessing that `DeiTImageConverter` does not have. "
        f"Give `preprocessor=`: {problem}."
    ):
        DeiTImageClassifier.from_preset(folder, load_weights=False)
    assert DeiTImageClassifier.from_preset(folder, load_weights=False, preprocessor=None).preprocessor is None
    assert DeiTBackbone.from_preset(folder, load_weights=False).num_layers == 3


def test_pickles_are_never_opened(rng, tmp_path):
    """A folder may hold both, or a pickle alone."""
    expected = randomize(tiny_classifier({"use_distillation_token": False, "layer_norm_epsilon": 1e-12}), rng)
    folder = transformers_folder(tmp_path / "mine", expected, "ViTForImageClassification", 4)
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch opened'\ntR.")
    DeiTImageClassifier.from_preset(folder)
    (folder / "model.safetensors").unlink()
    with raises(
        f"There is no {folder / 'model.safetensors'}. Weights in pickles (.bin, .pth) are not opened here. Save them as "
        "safetensors (timm's `save_for_hf` takes `safe_serialization=True`), or convert them once, with tools/convert_checkpoint.py."
    ):
        DeiTImageClassifier.from_preset(folder)


def test_a_safetensors_file_cut_short(rng, tmp_path):
    expected = tiny_classifier({"use_distillation_token": False})
    folder = transformers_folder(tmp_path / "mine", expected, "ViTForImageClassification", 4)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"model.safetensors is not a whole safetensors file: .* Copy or download it again."):
        DeiTImageClassifier.from_preset(folder)


def test_a_tensor_of_another_shape_is_named_as_in_the_file(small_catalog, rng, tmp_path):
    tensors = timm_tensors(classifier_of(rng, **{**SIZES, "use_distillation_token": False}))
    folder = write_folder(tmp_path / "mine", tensors, config=timm_config("deit_tiny_patch16_224", (32, 32), 5))
    with raises(
        f"The tensors of {folder / 'model.safetensors'}, under timm's names, are not those of the architecture.\nMissing: none\nLeft over: none\n"
        "Other shape: pos_embed is (1, 7, 8), not (1, 5, 8)"
    ):
        DeiTImageClassifier.from_preset(folder, image_shape=(64, 64, 3))


def serve(hub, repository, folder):
    for file in folder.iterdir():
        hub.files[(repository, file.name)] = file.read_bytes()


def test_repositories_of_three_layouts(hub, small_catalog, rng, tmp_path):
    x = images(rng)
    own = randomize(tiny_classifier(), rng)
    own.save_to_preset(tmp_path / "own")
    serve(hub, "someone/own", tmp_path / "own")
    np.testing.assert_array_equal(numpy(DeiTImageClassifier.from_preset("hf://someone/own")(x)), numpy(own(x)))
    theirs = randomize(tiny_classifier({"layer_norm_epsilon": 1e-12}), rng)
    serve(hub, "some.one/two_heads-1", transformers_folder(tmp_path / "hf", theirs, "DeiTForImageClassificationWithTeacher", 4))
    np.testing.assert_array_equal(numpy(DeiTImageClassifier.from_preset("hf://some.one/two_heads-1")(x)), numpy(theirs(x)))
    timms = classifier_of(rng, **{**SIZES, "use_distillation_token": False})
    folder = write_folder(tmp_path / "timm", timm_tensors(timms), config=timm_config("deit_tiny_patch16_224", (32, 48), 5))
    serve(hub, "someone/timm", folder)
    x = images(rng, shape=(32, 48, 3))
    np.testing.assert_array_equal(numpy(DeiTImageClassifier.from_preset("hf://someone/timm")(x)), numpy(timms(x)))


def test_facebooks_repository_has_the_epsilon_and_the_preprocessing_of_the_training(hub, small_catalog, rng, tmp_path):
    """Its config says 1e-12, and for some of the models a mean of 0.5."""
    expected = classifier_of(rng, num_classes=1000, **{**SIZES, "image_shape": (224, 224, 3)})
    folder = transformers_folder(tmp_path / "fb", expected, "DeiTForImageClassificationWithTeacher", 4)
    serve(hub, "facebook/deit-tiny-distilled-patch16-224", folder)
    classifier = DeiTImageClassifier.from_preset("hf://facebook/deit-tiny-distilled-patch16-224")
    assert classifier.backbone.layer_norm_epsilon == 1e-6
    assert (classifier.preprocessor.mean, classifier.preprocessor.crop_ratio) == ((0.485, 0.456, 0.406), 0.875)
    assert classifier.labels[1] == "goldfish, Carassius auratus"
    x = images(rng, batch=1, shape=(224, 224, 3))
    np.testing.assert_array_equal(numpy(classifier(x)), numpy(expected(x)))


def test_offline_knows_what_a_repository_does_not_have(hub, rng, tmp_path, monkeypatch):
    """preprocessor_config.json is not there, which the cache remembers."""
    from huggingface_hub import constants

    expected = randomize(tiny_classifier({"layer_norm_epsilon": 1e-12}), rng)
    folder = transformers_folder(tmp_path / "hf", expected, "DeiTForImageClassificationWithTeacher", 4)
    (folder / "preprocessor_config.json").unlink()
    serve(hub, "someone/model", folder)
    x = images(rng)
    for offline in (False, True):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        hub.requests.clear()
        classifier = DeiTImageClassifier.from_preset("hf://someone/model")
        np.testing.assert_array_equal(numpy(classifier(x)), numpy(expected(x)))
        assert classifier.preprocessor is None
    assert hub.requests == []


def test_handles_of_the_hub_that_are_none(hub):
    with raises(
        "A preset on the Hugging Face Hub is named by its owner and repository, 'hf://owner/repo'. Received: 'hf://deit'"
    ):
        DeiTBackbone.from_preset("hf://deit")
    with pytest.raises(ValueError, match="There is no config.json of 'no/such' on the Hugging Face Hub, or it is private."):
        DeiTBackbone.from_preset("hf://no/such")
    hub.files[("a/dataset", "data.csv")] = b""
    with raises(
        "'a/dataset' on the Hugging Face Hub is not a preset: a preset has config.json and metadata.json, as `save_to_preset` "
        "writes them, or the config.json of timm or transformers. Found: a repository without them"
    ):
        DeiTBackbone.from_preset("hf://a/dataset")


def test_half_precision_files_load_into_float32(small_catalog, rng, tmp_path):
    import ml_dtypes

    expected = classifier_of(rng, **{**SIZES, "use_distillation_token": False})
    tensors = {name: array.astype(ml_dtypes.bfloat16) for name, array in timm_tensors(expected).items()}
    folder = write_folder(tmp_path / "half", tensors, config=timm_config("deit_tiny_patch16_224", (32, 48), 5))
    classifier = DeiTImageClassifier.from_preset(folder, image_shape=(48, 48, 3))
    kernel = numpy(classifier.head.kernel)
    assert kernel.dtype == "float32"
    np.testing.assert_array_equal(kernel, tensors["head.weight"].astype("float32").T)


def test_a_second_head_starts_as_the_first(small_catalog, rng, tmp_path, caplog):
    """A plain checkpoint into a distilled model, from timm's folder and from our own."""
    plain = classifier_of(rng, **{**SIZES, "use_distillation_token": False})
    write_folder(tmp_path / "timm", timm_tensors(plain), config=timm_config("deit_tiny_patch16_224", (32, 48), 5))
    plain.save_to_preset(tmp_path / "own")
    for name in ("timm", "own"):
        caplog.clear()
        with caplog.at_level("INFO"):
            classifier = DeiTImageClassifier.from_preset(tmp_path / name, use_distillation_token=True)
        assert sum("it starts as" in message for message in caplog.messages) == 2
        assert list(classifier.token_logits) == ["class", "distillation"]
        for head in (classifier.head.class_head, classifier.head.distillation_head):
            np.testing.assert_array_equal(numpy(head.kernel), numpy(plain.head.kernel))
            np.testing.assert_array_equal(numpy(head.bias), numpy(plain.head.bias))
        caplog.clear()
        with caplog.at_level("INFO"):
            one = DeiTImageClassifier.from_preset(
                tmp_path / name, use_distillation_token=True, use_distillation_head=False, name="one"
            )
        assert list(one.token_logits) == ["class"]
        np.testing.assert_array_equal(numpy(one.head.kernel), numpy(plain.head.kernel))


def test_configs_that_are_not_json(hub):
    hub.files[("some/one", "config.json")] = b"{"
    with pytest.raises(ValueError, match="config.json of 'some/one' on the Hugging Face Hub is not valid JSON"):
        DeiTBackbone.from_preset("hf://some/one")
    hub.files[("some/list", "config.json")] = json.dumps([1]).encode()
    hub.files[("some/list", "model.safetensors")] = save({})
    with pytest.raises(ValueError, match="'some/list' on the Hugging Face Hub is not a preset"):
        DeiTBackbone.from_preset("hf://some/list")


def test_a_copy_of_facebooks_files_gets_a_warning(tmp_path, caplog):
    config = {
        "model_type": "vit",
        "architectures": ["ViTForImageClassification"],
        "id2label": {str(i): "?" for i in range(1000)},
    }
    folder = write_folder(tmp_path / "copy", {}, config=config)
    DeiTBackbone.from_preset(folder, load_weights=False, num_layers=1)
    assert any("give layer_norm_epsilon=1e-6" in message for message in caplog.messages)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"pretrained_cfg": None}, "must be a JSON object with 'input_size', which it lacks. Restore the file."),
        (
            {"pretrained_cfg": {"input_size": [3, 32, 48]}},
            "must be a JSON object with 'crop_pct', which it lacks. Restore the file.",
        ),
    ],
)
def test_a_config_of_timm_that_lacks_something(change, problem, tmp_path):
    folder = write_folder(tmp_path / "mine", {}, config=timm_config("deit_tiny_patch16_224", (32, 48), 5, **change))
    with raises(f"{folder / 'config.json'} {problem}"):
        DeiTImageClassifier.from_preset(folder, load_weights=False)


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({"config": {"id2label": ["a", "b"]}}, "must map the classes' numbers to names in 'id2label'. Received: ['a', 'b']"),
        ({"preprocessor_config": []}, "must be a JSON object. Received: []"),
        (
            {"preprocessor_config": {"size": {"longest_edge": 256}}},
            "must be a JSON object with 'height', which it lacks. Restore the file.",
        ),
    ],
)
def test_a_config_of_transformers_that_lacks_something(files, problem, tmp_path):
    name = next(iter(files))
    config = {"model_type": "vit", "architectures": ["ViTForImageClassification"], **files.get("config", {})}
    folder = write_folder(tmp_path / "mine", {}, **{**files, "config": config})
    with raises(f"{folder / name}.json {problem}"):
        DeiTImageClassifier.from_preset(folder, load_weights=False, num_layers=1)


def test_processors_that_leave_their_defaults_out(tmp_path):
    config = {"model_type": "vit", "architectures": ["ViTForImageClassification"], "image_size": None}
    processor = {"image_processor_type": "ViTImageProcessorFast", "crop_size": None, "do_center_crop": None}
    folder = write_folder(tmp_path / "mine", {}, config=config, preprocessor_config=processor)
    converter = DeiTImageClassifier.from_preset(folder, load_weights=False, num_layers=1).preprocessor
    assert (converter.image_size, converter.crop_ratio, converter.interpolation) == ((224, 224), 1.0, "bilinear")
    assert converter.mean == (0.5, 0.5, 0.5)


def test_labels_that_timm_writes_when_it_saves_a_loaded_model(tmp_path):
    config = timm_config("deit_tiny_patch16_224", (32, 48), 1000)
    config["pretrained_cfg"]["label_names"] = [f"x{index}" for index in range(1000)]
    folder = write_folder(tmp_path / "mine", {}, config=config)
    assert DeiTImageClassifier.from_preset(folder, load_weights=False, num_layers=1).labels[:2] == ["x0", "x1"]


def test_a_path_is_no_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_classifier().save_to_preset("deit_tiny_patch16_224")
    assert DeiTBackbone.from_preset(pathlib.Path("deit_tiny_patch16_224")).num_layers == 3


def test_the_second_load_of_a_repository_asks_once(hub, tmp_path):
    """Which commit is the newest; the files of that commit are in the cache."""
    tiny_classifier().save_to_preset(tmp_path / "own")
    serve(hub, "someone/own", tmp_path / "own")
    DeiTImageClassifier.from_preset("hf://someone/own")
    hub.requests.clear()
    DeiTImageClassifier.from_preset("hf://someone/own")
    assert [method for method, _ in hub.requests] == ["HEAD"]


def test_one_of_two_heads_is_another_model(tmp_path):
    tiny_classifier().save_to_preset(tmp_path / "own")
    with raises(
        f"The preset {str(tmp_path / 'own')!r} has two heads that answer together; one alone is another model. Leave out "
        "`use_distillation_head=False`, or take `token_logits` apart."
    ):
        DeiTImageClassifier.from_preset(tmp_path / "own", use_distillation_head=False)


def test_an_override_that_says_what_is_there_already_changes_nothing(rng, tmp_path):
    one = randomize(tiny_classifier(use_distillation_head=False), rng)
    one.save_to_preset(tmp_path / "own")
    assert list(DeiTImageClassifier.from_preset(tmp_path / "own", use_distillation_token=True).token_logits) == ["class"]
