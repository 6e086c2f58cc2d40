"""Files of earlier versions load and give the numbers that they gave then: tests/saved, one folder
for each version.
"""

import json
import pathlib
import shutil

import keras
import numpy as np
import pytest

from keras_deit.layers import MergingTransformerBlock, TransformerBlock
from keras_deit.models import DeiTImageClassifier
from tests.helpers import numpy, same_arrays, tiny_classifier

pytestmark = pytest.mark.backend

SAVED = pathlib.Path(__file__).parent.parent / "saved"


@pytest.fixture(params=sorted(path.name for path in SAVED.iterdir()))
def folder(request):
    return SAVED / request.param


@pytest.fixture
def expected(folder):
    with np.load(folder / "expected.npz") as content:
        return dict(content)


@pytest.mark.slow
@pytest.mark.parametrize("load", [keras.saving.load_model, DeiTImageClassifier.from_preset])
def test_a_classifier_that_merges(load, folder, expected):
    name = "preset" if load == DeiTImageClassifier.from_preset else "classifier.keras"
    classifier = load(folder / name)
    assert classifier.backbone.num_merged_tokens == 2
    np.testing.assert_allclose(
        classifier.predict(expected["photos"], verbose=0), expected["logits"], atol=1e-5
    )
    scored = keras.Model(classifier.input, classifier.outputs_with_attention_scores)(
        expected["converted"]
    )
    np.testing.assert_allclose(
        numpy(scored["attention_scores"]["block_1"]), expected["scores"], atol=1e-5
    )


@pytest.mark.parametrize(
    ("damage", "expected_error"),
    [
        (
            lambda entry: entry.update(sha256="0" * 64),
            "is truncated or was changed: ",
        ),
        (lambda entry: entry["variables"].popitem(), "are not those that `metadata.json` lists"),
        (lambda entry: entry.update(variables=[1]), "'weights' in .* must be a JSON object with "),
        (lambda entry: entry.update(variables={"a": 1}), "'weights' in .* must be a JSON object "),
    ],
)
def test_hdf5_of_version_0_1_that_does_not_fit_its_metadata(damage, expected_error, tmp_path):
    shutil.copytree(SAVED / "v0.1.0" / "preset", tmp_path / "preset")
    metadata = json.loads((tmp_path / "preset" / "metadata.json").read_text())
    damage(metadata["weights"]["model.weights.h5"])
    (tmp_path / "preset" / "metadata.json").write_text(json.dumps(metadata))
    with pytest.raises(ValueError, match=expected_error):
        DeiTImageClassifier.from_preset(tmp_path / "preset")


def test_saving_over_a_preset_of_version_0_1_leaves_none_of_its_files(folder, tmp_path):
    shutil.copytree(folder / "preset", tmp_path / "preset")
    classifier = DeiTImageClassifier.from_preset(tmp_path / "preset")
    classifier.save_to_preset(tmp_path / "preset")
    assert not list((tmp_path / "preset").glob("*.h5"))
    same_arrays(
        DeiTImageClassifier.from_preset(tmp_path / "preset").get_weights(), classifier.get_weights()
    )


def test_a_users_own_model_of_plain_and_merging_blocks(folder, expected):
    """Version 0.1's `TransformerBlock` merged by itself: its config has become that of a
    `MergingTransformerBlock`.
    """
    model = keras.saving.load_model(folder / "composed.keras")
    assert type(model.get_layer("plain")) is TransformerBlock
    assert type(model.get_layer("merging")) is MergingTransformerBlock
    outputs = model.predict(expected["tokens"], verbose=0)
    assert len(outputs) == 4
    for index, found in enumerate(outputs):
        np.testing.assert_allclose(found, expected[f"composed_{index}"], atol=1e-5)


def test_merging_can_be_turned_on_and_off_for_trained_weights(tmp_path):
    for written, read in ((0, 2), (2, 0)):
        classifier = tiny_classifier({"num_merged_tokens": written})
        classifier.save_to_preset(tmp_path / f"{written}")
        loaded = DeiTImageClassifier.from_preset(tmp_path / f"{written}", num_merged_tokens=read)
        assert loaded.backbone.num_merged_tokens == read
        same_arrays(loaded.get_weights(), classifier.get_weights())
