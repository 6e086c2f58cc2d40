"""What Keras has serialized inside our configs, as kinds: settings, and no other class."""

import keras

from keras_deit.presets.kinds import SWITCH, Kind, is_object, is_text, object_of, or_null

_POLICIES = (
    "DTypePolicy",
    "FloatDTypePolicy",
    "Int4DTypePolicy",
    "QuantizedDTypePolicy",
    "QuantizedFloat8DTypePolicy",
)
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
    """Whether a value of a config is a number, a text, or a short list of them."""
    if isinstance(value, (list, tuple)):
        return len(value) <= 8 and all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float)) or is_text(value)


def _builds(build, value):
    """Whether Keras takes a value whose classes are known already."""
    try:
        build(value)
    except (AttributeError, KeyError, TypeError, ValueError):
        return False
    return True


def _is_policy(value):
    return _has_policies_alone(value) and _builds(keras.dtype_policies.get, value)


def _has_policies_alone(value):
    if _is_one_of(value, ("DTypePolicyMap",)):
        policies = value["config"].get("policy_map")
        return (
            set(value["config"]) <= {"default_policy", "policy_map"}
            and _is_single_policy(value["config"].get("default_policy"))
            and is_object(policies)
            and all(map(_is_single_policy, policies.values()))
        )
    return _is_single_policy(value)


def _is_single_policy(value):
    return (
        value is None
        or is_text(value)
        or (_is_one_of(value, _POLICIES) and all(map(_is_plain, value["config"].values())))
    )


def _is_quantization_config(value):
    return (
        _is_one_of(value, _QUANTIZATION_CONFIGS)
        and all(
            _is_plain(inner)
            or (_is_one_of(inner, _QUANTIZERS) and all(map(_is_plain, inner["config"].values())))
            for inner in value["config"].values()
        )
        and _builds(keras.saving.deserialize_keras_object, value)
    )


def _is_activation(value):
    """A name of Keras, or a function that the user's program has registered."""
    if value is None or is_text(value):
        return _builds(keras.activations.get, value)
    return (
        is_object(value)
        and value.get("class_name") == "function"
        and is_text(value.get("registered_name"))
        and keras.saving.get_registered_object(value["registered_name"]) is not None
    )


POLICY = Kind("a dtype policy: float, int8, int4 or float8", _is_policy)
QUANTIZATION = or_null(
    object_of(Kind("a quantization config of int8, int4 or float8", _is_quantization_config))
)
ACTIVATION = Kind(
    "the name of an activation of Keras, or of one that your program registers", _is_activation
)
_PARTS = object_of(SWITCH)
TRAINABLE = Kind(
    'true, false, or a JSON object of them with the key ""',
    lambda value: isinstance(value, bool) or (_PARTS.accepts(value) and "" in value),
)
