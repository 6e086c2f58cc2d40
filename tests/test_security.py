"""What SECURITY.md says of loading: harmless presets that try to run code, and do not."""

import json

import keras
import pytest

from keras_deit.models import DeiTImageClassifier

EVAL = {"module": "builtins", "class_name": "eval", "config": {}, "registered_name": None}
TFSM = {
    "module": "keras.layers",
    "class_name": "TFSMLayer",
    "config": {"filepath": "somewhere"},
    "registered_name": None,
}


@pytest.fixture
def preset(tmp_path):
    DeiTImageClassifier.from_preset("deit_nano_distilled_patch4_32_digits").save_to_preset(
        tmp_path / "preset"
    )
    return tmp_path / "preset"


def a_lambda():
    return keras.saving.serialize_keras_object(keras.layers.Lambda(lambda x: x))


@pytest.mark.parametrize(
    ("layer", "error", "message"),
    [
        (a_lambda, ValueError, "deserialization of a `Lambda` layer"),
        (lambda: TFSM, ValueError, "deserialization of a `TFSMLayer`"),
        (lambda: EVAL, TypeError, "Could not locate class 'eval'"),
    ],
    ids=["Lambda", "TFSMLayer", "eval"],
)
def test_a_preprocessor_that_runs_code_is_refused(layer, error, message, preset):
    (preset / "preprocessor.json").write_text(json.dumps(layer()))
    with pytest.raises(error, match=message):
        DeiTImageClassifier.from_preset(preset)


def test_an_activation_is_no_function_of_python(preset):
    task = json.loads((preset / "task.json").read_text())
    task["activation"] = {**EVAL, "class_name": "function", "config": "eval"}
    (preset / "task.json").write_text(json.dumps(task))
    with pytest.raises(TypeError, match="Could not locate function 'eval'"):
        DeiTImageClassifier.from_preset(preset)


def test_unknown_arguments_are_refused(preset):
    config = json.loads((preset / "config.json").read_text())
    config["config"]["callback"] = "eval"
    (preset / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="callback"):
        DeiTImageClassifier.from_preset(preset)
