"""Every configuration of `quantize` that Keras 3.15 saves comes back with the same bits: in
`.keras` files and in presets.
"""

import json

import keras
import numpy as np
import pytest
from keras.quantizers import AbsMaxQuantizer, Int4QuantizationConfig, Int8QuantizationConfig

from keras_deit.models import DeiTImageClassifier
from tests.helpers import images, numpy, randomize, same_arrays, tiny_backbone, tiny_classifier

pytestmark = [
    pytest.mark.backend,
    pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method:UserWarning"),
]

WEIGHTS_ONLY = Int8QuantizationConfig(activation_quantizer=None)
# Arguments of each call of `quantize`.
CASES = {
    "int8": [{"mode": "int8"}],
    "int8, weights only": [{"config": WEIGHTS_ONLY}],
    "int8, other ranges": [
        {
            "config": Int8QuantizationConfig(
                weight_quantizer=AbsMaxQuantizer(axis=0, value_range=(-100, 100)),
                activation_quantizer=AbsMaxQuantizer(axis=-1, value_range=(-20, 20)),
            )
        }
    ],
    "int4": [{"mode": "int4"}],
    "int4, blocks of 4": [{"config": Int4QuantizationConfig(block_size=4)}],
    "int4, a scale for each channel": [{"config": Int4QuantizationConfig(block_size=None)}],
    "int4, activations": [
        {
            "config": Int4QuantizationConfig(
                block_size=-1, activation_quantizer=AbsMaxQuantizer(axis=-1)
            )
        }
    ],
    "float8": [{"mode": "float8"}],
    "one layer": [{"config": WEIGHTS_ONLY, "filters": "intermediate"}],
    "each layer its own": [
        {"config": WEIGHTS_ONLY, "filters": "qkv"},
        {"mode": "int8", "filters": "intermediate"},
        {"config": Int4QuantizationConfig(block_size=8), "filters": "projection"},
    ],
}


def quantized(model, case):
    for arguments in CASES[case]:
        model.quantize(**arguments)
    return model


def test_every_mode_of_keras_but_those_for_text_is_here():
    names = [
        name.removesuffix("QuantizationConfig")
        for name in dir(keras.quantizers)
        if name.endswith("QuantizationConfig")
    ]
    modes = {call.get("mode") or call["config"].mode for calls in CASES.values() for call in calls}
    assert modes == {name.lower() for name in names if name}


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=() if case == "int8" else pytest.mark.slow) for case in CASES],
)
def test_a_classifier_of_files_answers_as_the_saved_one(case, rng, tmp_path):
    classifier = randomize(tiny_classifier({"num_layers": 1}), rng)
    x = images(rng)
    before = numpy(classifier(x))
    expected = numpy(quantized(classifier, case)(x))
    assert not np.array_equal(expected, before)
    classifier.save(tmp_path / "model.keras")
    classifier = keras.saving.load_model(tmp_path / "model.keras")
    same_arrays(classifier(x), expected)
    classifier.save_to_preset(tmp_path / "preset")  # what was loaded saves as well
    classifier = DeiTImageClassifier.from_preset(tmp_path / "preset")
    same_arrays(classifier(x), expected)
    config = json.loads(json.dumps(classifier.get_config()))
    assert json.loads(json.dumps(DeiTImageClassifier.from_config(config).get_config())) == config


@pytest.mark.slow
@pytest.mark.parametrize("case", ["int8, weights only", "each layer its own"])
def test_a_users_model_around_a_backbone_in_half_precision(case, rng, tmp_path):
    backbone = tiny_backbone(num_layers=1, dtype="mixed_bfloat16")
    inputs = keras.Input((12, 32, 3))
    model = keras.Model(inputs, keras.layers.Dense(3)(backbone(inputs)))
    quantized(randomize(model, rng), case)
    x = images(rng)
    model.save(tmp_path / "model.keras")
    same_arrays(keras.saving.load_model(tmp_path / "model.keras")(x), model(x))


@pytest.mark.slow
def test_overrides_of_a_quantized_preset(rng, tmp_path):
    classifier = randomize(tiny_classifier({"num_layers": 1}), rng)
    classifier.quantize(config=WEIGHTS_ONLY)
    classifier.save_to_preset(tmp_path / "preset")
    fresh = DeiTImageClassifier.from_preset(
        tmp_path / "preset", num_classes=3, image_shape=(24, 32, 3)
    )
    assert fresh.head.class_head.quantization_config is None
    assert fresh.head.class_head.quantization_mode is None
    kept = fresh.backbone.blocks[0].attention.qkv
    assert kept.quantization_config.get_config() == WEIGHTS_ONLY.get_config()
    random = DeiTImageClassifier.from_preset(tmp_path / "preset", load_weights=False)
    assert random.backbone.blocks[0].mlp.projection.quantization_config is None
