"""timm's own numbers, from tests/golden, which tools/golden.py wrote."""

import pathlib

import keras
import numpy as np
import pytest
from safetensors.numpy import load_file

from keras_deit import presets
from keras_deit.models import DeiTImageClassifier
from keras_deit.presets.adaptation import resample_positions
from tests.helpers import numpy, tiny_backbone

pytestmark = pytest.mark.backend

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"
ARCHITECTURES = {
    "deit_tiny_patch16_224": {},
    "deit_tiny_distilled_patch16_224": {"use_distillation_token": True},
    "deit3_small_patch16_224": {"position_scope": "patches", "layer_scale_init_value": 1e-4},
}


@pytest.fixture(params=ARCHITECTURES)
def case(request):
    """(classifier, the weights in the file, what else is in it)."""
    content = load_file(GOLDEN / f"{request.param}.safetensors")
    tensors = {
        name.removeprefix("weights."): array
        for name, array in content.items()
        if name.startswith("weights.")
    }
    backbone = tiny_backbone(hidden_dim=12, intermediate_dim=48, **ARCHITECTURES[request.param])
    classifier = DeiTImageClassifier(backbone, num_classes=5)
    presets.assign_tensors(classifier, tensors, source=request.param)
    return classifier, tensors, content


def test_timms_forward_pass_at_three_depths(case):
    classifier, _, golden = case
    backbone = classifier.backbone
    embeddings = backbone.token_position_embedding(backbone.patch_embedding(golden["images"]))
    np.testing.assert_allclose(numpy(embeddings), golden["embeddings"], atol=1e-5)
    model = keras.Model(
        classifier.input,
        {
            "block_1": backbone.block_outputs["block_1"],
            "logits": classifier.output,
            **classifier.token_logits,
        },
    )
    outputs = model(golden["images"])
    assert set(outputs) <= set(golden)
    for name, output in outputs.items():
        np.testing.assert_allclose(numpy(output), golden[name], atol=1e-5, err_msg=name)


def test_timms_own_state_dict_comes_back(case):
    """The same names, shapes and bits: `load_state_dict(strict=True)` takes them."""
    classifier, tensors, _ = case
    found = presets.timm_tensors(classifier)
    assert {name: array.shape for name, array in found.items()} == {
        name: array.shape for name, array in tensors.items()
    }
    for name, array in found.items():
        np.testing.assert_array_equal(array, tensors[name])


@pytest.mark.parametrize("num_prefix_tokens", [0, 1, 2])
def test_positions_are_resampled_as_timm_does(num_prefix_tokens):
    golden = load_file(GOLDEN / "positions.safetensors")
    positions = golden.pop("positions")[0, 2 - num_prefix_tokens :]
    assert len(golden) == 4
    for name, expected in golden.items():
        new_grid = tuple(map(int, name.split("x")))
        found = resample_positions(positions, num_prefix_tokens, (14, 14), new_grid)
        np.testing.assert_allclose(
            found, expected[0, 2 - num_prefix_tokens :], atol=1e-5, err_msg=name
        )
