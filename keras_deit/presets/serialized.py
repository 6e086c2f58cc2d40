"""What Keras has serialized inside our configs, as kinds: settings, and no other class."""

import re
import types

import keras

from keras_deit.presets.kinds import SWITCH, Kind, is_object, is_text, object_of, or_null

_FLOATS = ("float16", "bfloat16", "float32", "float64", "mixed_float16", "mixed_bfloat16")
_QUANTIZED_POLICIES = ("Int4DTypePolicy", "QuantizedDTypePolicy", "QuantizedFloat8DTypePolicy")
_QUANTIZATION_CONFIGS = (
    "Float8QuantizationConfig",
    "Int4QuantizationConfig",
    "Int8QuantizationConfig",
)
_QUANTIZERS = ("AbsMaxQuantizer",)
_MODULES = ("keras", "keras.dtype_policies", "keras.quantizers")


def _is_one_of(value, classes):
    """Whether a value is a serialized object of one of Keras' classes."""
    return (
        is_object(value)
        and set(value) <= {"module", "class_name", "config", "registered_name"}
        and value.get("module") in _MODULES
        and value.get("registered_name") is None
        and value.get("class_name") in classes
        and is_object(value.get("config"))
    )


def _is_plain(value):
    """Whether a value of a config is a text, a number, or a short list of them."""
    if isinstance(value, (list, tuple)):
        return len(value) <= 8 and all(map(_is_plain, value))
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) <= 2**16  # some of them are sizes
    return value is None or isinstance(value, (bool, float)) or is_text(value)


def _builds(build, value):
    """Whether Keras takes a value whose classes are known already."""
    try:
        build(value)
    except (AttributeError, KeyError, TypeError, ValueError):
        return False
    return True


def _deserialized(value):
    return keras.saving.deserialize_keras_object(value, safe_mode=True)


def _is_policy(value):
    if value is None or value in _FLOATS:
        return True
    if not _is_one_of(value, ("DTypePolicyMap",)):
        return _is_single_policy(value)
    config = value["config"]
    policies = config.get("policy_map")
    return (
        set(config) <= {"default_policy", "policy_map"}
        and _is_float_policy(config.get("default_policy"))
        and is_object(policies)
        # To Keras they are regular expressions, to us the paths of layers.
        and all(re.fullmatch(r"[\w/]{1,200}", path) for path in policies)
        and all(map(_is_single_policy, policies.values()))
    )


def _is_float_policy(value):
    return _is_one_of(value, ("DTypePolicy", "FloatDTypePolicy")) and (
        set(value["config"]) == {"name"} and value["config"]["name"] in _FLOATS
    )


def _is_single_policy(value):
    return _is_float_policy(value) or (
        _is_one_of(value, _QUANTIZED_POLICIES)
        and value["config"].get("source_name") in _FLOATS
        and all(map(_is_plain, value["config"].values()))
        and _builds(keras.dtype_policies.get, value)
    )


def _is_quantization_config(value):
    return (
        _is_one_of(value, _QUANTIZATION_CONFIGS)
        and all(
            _is_plain(inner)
            or (_is_one_of(inner, _QUANTIZERS) and all(map(_is_plain, inner["config"].values())))
            for inner in value["config"].values()
        )
        and _builds(_deserialized, value)
    )


def _is_activation(value):
    """A name of Keras, or a function that the user's program has registered."""
    if value is None or is_text(value):
        return _builds(keras.activations.get, value)
    name = value.get("config") if is_object(value) else None
    return (
        is_text(name)
        and value.get("class_name") == "function"
        and isinstance(keras.saving.get_registered_object(name), types.FunctionType)
    )


POLICY = Kind("a dtype policy: float, int8, int4 or float8", _is_policy)
QUANTIZATION = or_null(
    object_of(Kind("a quantization config of int8, int4 or float8", _is_quantization_config))
)
ACTIVATION = Kind(
    "the name of an activation of Keras, or a function that your program registers", _is_activation
)
_PARTS = object_of(SWITCH)
TRAINABLE = Kind(
    'true, false, or a JSON object of them with the key ""',
    lambda value: isinstance(value, bool) or (_PARTS.accepts(value) and "" in value),
)
