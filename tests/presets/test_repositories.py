"""Repositories of the hub, in three layouts, as presets."""

import json
import pathlib

import numpy as np
import pytest
from safetensors.numpy import save

from keras_deit.models import DeiTBackbone, DeiTImageClassifier
from tests.helpers import images, numpy, raises, randomize, same_arrays, tiny_classifier
from tests.hub_layouts import (
    SIZES,
    classifier_of,
    timm_config,
    timm_tensors,
    transformers_folder,
    write_folder,
)
from tests.hub_server import COMMIT


def serve(hub, repository, folder):
    for file in folder.iterdir():
        hub.files[(repository, file.name)] = file.read_bytes()


def test_repositories_of_three_layouts(hub, small_catalog, rng, tmp_path):
    x = images(rng)
    own = randomize(tiny_classifier(), rng)
    own.save_to_preset(tmp_path / "own")
    serve(hub, "someone/own", tmp_path / "own")
    np.testing.assert_array_equal(
        numpy(DeiTImageClassifier.from_preset("hf://someone/own")(x)), numpy(own(x))
    )
    theirs = randomize(tiny_classifier({"layer_norm_epsilon": 1e-12}), rng)
    serve(
        hub,
        "some.one/two_heads-1",
        transformers_folder(tmp_path / "hf", theirs, "DeiTForImageClassificationWithTeacher", 4),
    )
    np.testing.assert_array_equal(
        numpy(DeiTImageClassifier.from_preset("hf://some.one/two_heads-1")(x)), numpy(theirs(x))
    )
    timms = classifier_of(rng, **{**SIZES, "use_distillation_token": False})
    folder = write_folder(
        tmp_path / "timm",
        timm_tensors(timms),
        config=timm_config("deit_tiny_patch16_224", (32, 48), 5),
    )
    serve(hub, "someone/timm", folder)
    x = images(rng, shape=(32, 48, 3))
    np.testing.assert_array_equal(
        numpy(DeiTImageClassifier.from_preset("hf://someone/timm")(x)), numpy(timms(x))
    )


def test_facebooks_repository_has_the_epsilon_and_the_preprocessing_of_the_training(
    hub, small_catalog, rng, tmp_path
):
    """Its config says 1e-12, and for some of the models a mean of 0.5."""
    expected = classifier_of(rng, num_classes=1000, **{**SIZES, "image_shape": (224, 224, 3)})
    folder = transformers_folder(
        tmp_path / "fb", expected, "DeiTForImageClassificationWithTeacher", 4
    )
    serve(hub, "facebook/deit-tiny-distilled-patch16-224", folder)
    classifier = DeiTImageClassifier.from_preset("hf://facebook/deit-tiny-distilled-patch16-224")
    assert classifier.backbone.layer_norm_epsilon == 1e-6
    assert (classifier.preprocessor.mean, classifier.preprocessor.crop_ratio) == (
        (0.485, 0.456, 0.406),
        0.875,
    )
    assert classifier.labels[1] == "goldfish, Carassius auratus"
    x = images(rng, batch=1, shape=(224, 224, 3))
    np.testing.assert_array_equal(numpy(classifier(x)), numpy(expected(x)))


def test_offline_knows_what_a_repository_does_not_have(hub, rng, tmp_path, monkeypatch):
    """preprocessor_config.json is not there, which the cache remembers."""
    from huggingface_hub import constants

    expected = randomize(tiny_classifier({"layer_norm_epsilon": 1e-12}), rng)
    folder = transformers_folder(
        tmp_path / "hf", expected, "DeiTForImageClassificationWithTeacher", 4
    )
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
        "A preset on the Hugging Face Hub is named by its owner and repository, 'hf://owner/repo'. "
        "Received: 'hf://deit'"
    ):
        DeiTBackbone.from_preset("hf://deit")
    with pytest.raises(
        ValueError,
        match="Repository 'no/such' on the Hugging Face Hub does not exist or is private.",
    ):
        DeiTBackbone.from_preset("hf://no/such")
    hub.files[("a/dataset", "data.csv")] = b""
    with raises(
        "'a/dataset' on the Hugging Face Hub is not a preset. A preset has config.json and "
        "metadata.json, as `save_to_preset` writes them, or the config.json of timm or "
        "transformers. Found: a repository without these files"
    ):
        DeiTBackbone.from_preset("hf://a/dataset")


def test_configs_that_are_not_json(hub):
    hub.files[("some/one", "config.json")] = b"{"
    with pytest.raises(
        ValueError, match="config.json of 'some/one' on the Hugging Face Hub is not valid JSON"
    ):
        DeiTBackbone.from_preset("hf://some/one")
    hub.files[("some/list", "config.json")] = json.dumps([1]).encode()
    hub.files[("some/list", "model.safetensors")] = save({})
    with pytest.raises(ValueError, match="'some/list' on the Hugging Face Hub is not a preset"):
        DeiTBackbone.from_preset("hf://some/list")


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


@pytest.mark.parametrize("revision", ["v1", COMMIT])
def test_a_revision(revision, hub, rng, tmp_path):
    own = randomize(tiny_classifier(), rng)
    own.save_to_preset(tmp_path / "own")
    serve(hub, "someone/own", tmp_path / "own")
    loaded = DeiTImageClassifier.from_preset("hf://someone/own", revision=revision)
    same_arrays(loaded.get_weights(), own.get_weights())
    first, *others = [path for method, path in hub.requests if method == "GET"]
    assert f"/resolve/{revision}/" in first
    assert all(f"/resolve/{COMMIT}/" in path for path in others)


def test_a_revision_that_is_not_there(hub, rng, tmp_path):
    tiny_classifier().save_to_preset(tmp_path / "own")
    serve(hub, "someone/own", tmp_path / "own")
    with pytest.raises(
        ValueError,
        match="Repository 'someone/own' on the Hugging Face Hub has no revision 'v2'. Use a commit, ",
    ):
        DeiTBackbone.from_preset("hf://someone/own", revision="v2")
    for handle in (str(tmp_path / "own"), "deit_nano_distilled_patch4_32_digits"):
        with raises(
            "`revision` selects a commit of a preset on the Hugging Face Hub, and "
            f"{handle!r} is not there. Received: revision='v1'"
        ):
            DeiTBackbone.from_preset(handle, revision="v1")
