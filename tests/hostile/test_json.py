"""Classes and functions in JSON files, and sizes that would take all memory."""

import re
import sys

import keras
import pytest

from keras_deit.models import DeiTImageClassifier
from tests.helpers import sign
from tests.hostile.conftest import plant, refusal


def layer(class_name, module="keras.layers", registered_name=None, **config):
    return {
        "module": module,
        "class_name": class_name,
        "config": config,
        "registered_name": registered_name,
    }


def a_lambda():
    return keras.saving.serialize_keras_object(keras.layers.Lambda(lambda x: x))


OBJECTS = {
    "CVE-2024-3660: Lambda": a_lambda,
    "CVE-2025-1550: any callable": lambda: layer("eval", "builtins"),
    "CVE-2025-8747: get_file": lambda: layer(
        "function", "keras.utils", config="get_file", origin="file:///etc/hostname"
    ),
    "CVE-2025-9906: unsafe mode": lambda: layer("enable_unsafe_deserialization", "keras.config"),
    "CVE-2025-49655: a pickle": lambda: layer("TorchModuleWrapper", module_config="gASVIA=="),
    "CVE-2025-12058: any file": lambda: layer("StringLookup", vocabulary="/etc/hostname"),
    "CVE-2026-1462: TFSMLayer": lambda: layer("TFSMLayer", filepath="somewhere"),
    "CVE-2026-12481: clone": lambda: layer("Functional", "keras", layers=[a_lambda()]),
    "another class of ours": lambda: layer("MLP", registered_name="keras_deit>MLP"),
    "a class for a function": lambda: {
        **layer("function", "builtins", "function"),
        "config": "keras_deit>MLP",
    },
    "a registered name before another": lambda: {
        **layer("function", "os", "keras_deit>MLP"),
        "config": "getcwd",
    },
    "a text": lambda: "keras_deit>DeiTImageConverter\u001b[2J",
}
PLACES = {
    "preprocessor.json": [()],
    "config.json": [("config", "dtype"), ("config", "quantization_config"), ("config", "name")],
    "task.json": [("dtype",), ("activation",), ("trainable",)],
    "labels.json": [()],
}


@pytest.mark.parametrize("name", OBJECTS)
@pytest.mark.parametrize(
    ("file", "keys"), [(file, keys) for file, places in PLACES.items() for keys in places]
)
def test_no_class_is_built_from_a_file(name, file, keys, preset):
    plant(preset, file, OBJECTS[name](), *keys)
    message = refusal(preset)
    assert str(preset / file) in message and "Received: " in message


@pytest.mark.parametrize("name", OBJECTS)
def test_nor_from_inside_a_quantized_model(name, preset):
    hidden = {"policy_map": {"head": OBJECTS[name]()}, "default_policy": "float32"}
    policy = layer("DTypePolicyMap", "keras.dtype_policies", **hidden)
    plant(preset, "config.json", policy, "config", "dtype")
    assert "'dtype' in " in refusal(preset)
    plant(preset, "config.json", "float32", "config", "dtype")
    config = layer("Int8QuantizationConfig", "keras.quantizers", weight_quantizer=OBJECTS[name]())
    plant(preset, "config.json", {"block_0/mlp": config}, "config", "quantization_config")
    assert "'quantization_config' in " in refusal(preset)


RUN_CODE = [name for name in OBJECTS if not re.search("any file|of ours|clone|a text", name)]


@pytest.mark.parametrize("name", RUN_CODE)
def test_a_keras_file_is_read_in_safe_mode(name, preset):
    """Its preprocessor may be any layer of Keras, but no code."""
    classifier = DeiTImageClassifier.from_preset(preset)
    config = {**classifier.get_config(), "preprocessor": OBJECTS[name]()}
    with pytest.raises((ValueError, TypeError, ImportError)):  # ImportError: PyTorch is not there
        DeiTImageClassifier.from_config(config)


@pytest.mark.parametrize(
    "policies",
    [
        {"block_0": None},
        {"block_0": "int8_from_float32"},
        {r"(\w+\w*)+!": layer("DTypePolicy", "keras", name="float32")},  # takes a regex for ever
        {"a": layer("QuantizedDTypePolicy", "keras", mode="int8", source_name="string")},
        {
            "a": layer(
                "QuantizedFloat8DTypePolicy",
                "keras",
                mode="float8",
                source_name="float32",
                amax_history_length=2**28,
            )
        },
    ],
)
def test_no_policy_of_another_kind_is_read(policies, preset):
    default = layer("DTypePolicy", "keras", name="float32")
    config = {"policy_map": policies, "default_policy": default}
    plant(
        preset,
        "config.json",
        {**default, "class_name": "DTypePolicyMap", "config": config},
        "config",
        "dtype",
    )
    assert refusal(preset).startswith(
        f"'dtype' in {preset / 'config.json'} must be a dtype policy: float, int8, int4 or float8. "
    )


def test_a_key_that_is_there_twice_takes_no_time(preset):
    keys = ",".join(f'"{number}": 0' for number in (*range(300_000), 1))
    (preset / "task.json").write_text(f"{{{keys}}}")
    sign(preset)
    assert "'1' is there twice" in refusal(preset)


def test_a_head_is_as_large_as_its_weights(preset):
    plant(preset, "task.json", 10**6, "num_classes")
    plant(preset, "labels.json", ["a"] * 10**6)
    message = refusal(preset)
    assert f"{preset / 'config.json'} must describe a model of the size of its weights" in message


def test_nothing_in_an_error_is_a_command_for_the_terminal(preset):
    for name, keys in (("task.json", ("\u001b[2J",)), ("metadata.json", ("files", "\u001b[2J"))):
        plant(preset, name, "\u001b[2J" * 99, *keys)
        assert refusal(preset).isprintable()


SIZES = [
    ("num_layers", 10**9),
    ("hidden_dim", 10**400),
    ("hidden_dim", 2**18),
    ("image_shape", [10**9] * 3),
    ("patch_size", 1e9),
]
# Smaller than the largest published models, but larger than the weights of this one
OTHER_SIZES = [
    ("num_layers", 1000),
    ("intermediate_dim", 2**18),
    ("image_shape", [2**14, 2**14, 3]),
]


@pytest.mark.parametrize(
    ("key", "value", "load_weights"),
    [(*size, loads) for size in SIZES for loads in (True, False)]
    + [(*size, True) for size in OTHER_SIZES],
)
def test_no_size_takes_all_memory(key, value, load_weights, preset):
    plant(preset, "config.json", value, "config", key)
    message = refusal(preset, load_weights=load_weights)
    assert str(preset / "config.json") in message


@pytest.mark.parametrize(
    ("key", "value"), [("image_size", 10**6), ("crop_ratio", 1e-6), ("mean", [0.5] * 10**6)]
)
def test_no_picture_takes_all_memory(key, value, preset):
    plant(preset, "preprocessor.json", value, "config", key)
    assert f"{key!r} in {preset / 'preprocessor.json'} must be " in refusal(preset)


def test_what_is_there_but_not_listed_is_not_read(preset):
    plant(preset, "metadata.json", {}, "files")
    assert refusal(preset) == (
        f"{preset / 'metadata.json'} must list config.json in 'files'. Restore the file."
    )
    files = ("config.json", "model.safetensors", "task.json", "head.safetensors")
    plant(preset, "metadata.json", dict.fromkeys(files, "0" * 64), "files")
    classifier = DeiTImageClassifier.from_preset(preset)
    assert classifier.labels is None and classifier.preprocessor is None


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such names")
@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "a/../../secret", "config.json/.."])
def test_no_name_climbs_out_of_the_preset(name, preset, secret):
    """CVE-2025-12060, CVE-2025-12638, CVE-2026-12479"""
    plant(preset, "metadata.json", "0" * 64, "files", name)
    assert f"'files' in {preset / 'metadata.json'} must be " in refusal(preset)


def test_an_unknown_argument_is_refused(preset):
    plant(preset, "config.json", "eval", "config", "callback")
    assert "callback" in refusal(preset)
