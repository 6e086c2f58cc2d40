"""The model card, and publishing a directory as it is."""

import huggingface_hub
import numpy as np
import pytest

from keras_deit.models import DeiTBackbone, DeiTImageClassifier
from keras_deit.presets.card import model_card
from tests.helpers import numpy, randomize, raw_images, tiny_backbone, tiny_classifier


def card_of(directory):
    card = huggingface_hub.ModelCard.load(directory / "README.md")
    assert "{" not in card.text
    return card


def test_a_published_directory_loads_back(hub, rng, tmp_path):
    classifier = randomize(tiny_classifier(), rng)
    classifier.save_to_preset(tmp_path / "insects")
    huggingface_hub.HfApi(endpoint=hub.url, token="hf_test").upload_folder(
        folder_path=tmp_path / "insects", repo_id="someone/insects"
    )
    assert {file for _, file in hub.files} == {
        file.name for file in (tmp_path / "insects").iterdir()
    }
    loaded = DeiTImageClassifier.from_preset("hf://someone/insects")
    x = raw_images(rng)
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), classifier.predict(x, verbose=0))
    assert loaded.labels == classifier.labels
    loaded.save_to_preset(tmp_path / "again")
    card = card_of(tmp_path / "again")
    assert card.data.base_model == "someone/insects"
    assert "The weights come from `hf://someone/insects`." in card.text


def test_a_card_of_a_model_of_ones_own_claims_nothing(tmp_path):
    classifier = tiny_classifier()
    classifier.save_to_preset(tmp_path / "insects")
    card = card_of(tmp_path / "insects")
    assert (card.data.library_name, card.data.pipeline_tag) == (
        "keras_deit",
        "image-classification",
    )
    assert card.data.license is None
    assert card.text.lstrip().startswith("# insects\n")
    assert (
        f"A DeiT image classifier for 5 classes: {classifier.count_params():,} parameters, images "
        "of 12 x 32 x 3" in card.text
    )
    assert 'DeiTImageClassifier.from_preset("hf://owner/insects")' in card.text
    assert "Not recorded." in card.text
    assert "Not measured." in card.text
    assert "Not stated." in card.text


def test_a_card_of_a_backbone(tmp_path):
    tiny_backbone().save_to_preset(tmp_path / "features")
    card = card_of(tmp_path / "features")
    assert card.data.pipeline_tag == "image-feature-extraction"
    assert "DeiTBackbone.from_preset" in card.text


def test_a_card_of_published_weights_names_source_licence_and_accuracy():
    backbone = tiny_backbone(use_distillation_token=True).get_config()
    text = model_card(
        "mine", backbone, {"num_classes": 1000}, 5_910_800, True, "deit_tiny_distilled_patch16_224"
    )
    card = huggingface_hub.ModelCard(text)
    assert card.data.license == "apache-2.0"
    assert card.data.base_model == "timm/deit_tiny_distilled_patch16_224.fb_in1k"
    assert "logits = model.predict(images)  # raw images, 0 to 255, any size" in text
    assert "74.476% as measured by its authors" in text
    assert "a class token and a distillation token" in text


def test_the_origin_stays_with_the_weights(rng, tmp_path, monkeypatch):
    backbone = tiny_backbone()
    backbone._origin = "deit_tiny_patch16_224"
    backbone.save_to_preset(tmp_path / "first")
    DeiTBackbone.from_preset(tmp_path / "first").save_to_preset(tmp_path / "second")
    assert "timm/deit_tiny_patch16_224.fb_in1k" in card_of(tmp_path / "second").text
    DeiTBackbone.from_preset(tmp_path / "first", load_weights=False).save_to_preset(
        tmp_path / "third"
    )
    assert "Not recorded." in card_of(tmp_path / "third").text


def test_an_edited_card_is_kept_and_another_one_renewed(tmp_path):
    directory = tmp_path / "insects"
    tiny_classifier().save_to_preset(directory)
    tiny_classifier(num_classes=2, labels=None).save_to_preset(directory)
    assert "for 2 classes" in card_of(directory).text
    (directory / "README.md").write_text("Mine.")
    for _ in range(2):
        tiny_classifier().save_to_preset(directory)
        assert (directory / "README.md").read_text() == "Mine."
    (directory / "notes.txt").write_text("")
    with pytest.raises(ValueError, match="contains other files: notes.txt"):
        tiny_classifier().save_to_preset(directory)


def test_a_directory_without_its_card_loads(rng, tmp_path):
    classifier = randomize(tiny_classifier(), rng)
    classifier.save_to_preset(tmp_path / "insects")
    (tmp_path / "insects" / "README.md").unlink()
    loaded = DeiTImageClassifier.from_preset(tmp_path / "insects")
    np.testing.assert_array_equal(
        numpy(loaded.head.class_head.kernel), numpy(classifier.head.class_head.kernel)
    )


@pytest.mark.parametrize(
    "handle", ["hf://timm/deit_tiny_patch16_224.fb_in1k", "hf://facebook/deit-tiny-patch16-224"]
)
def test_published_weights_are_known_by_their_repositories(handle):
    text = model_card("mine", tiny_backbone().get_config(), None, 1, False, handle)
    assert "license: apache-2.0" in text
    assert "72.202% as measured by its authors" in text


def test_published_weights_stay_known_through_the_hub(hub, rng, tmp_path):
    """A copy of a copy still says whose weights it has."""
    classifier = tiny_classifier()
    classifier.backbone._origin = "deit_tiny_distilled_patch16_224"
    classifier.save_to_preset(tmp_path / "mine")
    for file in (tmp_path / "mine").iterdir():
        hub.files[("me/mine", file.name)] = file.read_bytes()
    DeiTImageClassifier.from_preset("hf://me/mine").save_to_preset(tmp_path / "again")
    assert (
        card_of(tmp_path / "again").data.base_model
        == "timm/deit_tiny_distilled_patch16_224.fb_in1k"
    )
