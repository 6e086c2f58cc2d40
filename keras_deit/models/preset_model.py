"""What the backbone and the classifier share about presets, and how trained weights meet another
grid.
"""

import difflib
import gc
import inspect
import numbers

import keras
from keras.dtype_policies import DTypePolicyMap

from keras_deit.layers.composite import own_policy
from keras_deit.layers.initialization import weights_follow
from keras_deit.presets import catalog, weights
from keras_deit.presets.adaptation import adapt_backbone
from keras_deit.presets.layout import pair

# The arguments of a backbone that trained weights bear to differ: they adapt, as to another
# `image_shape`, or the argument is of the training or the machine. Another value of the rest makes
# another function of the same weights.
_ADAPTABLE = (
    "image_shape",
    "use_distillation_token",
    "dropout_rate",
    "attention_dropout_rate",
    "drop_path_rate",
    "drop_path_schedule",
    "layer_scale_init_value",
    "num_merged_tokens",
    "remat",
    "data_format",
    "dtype",
    "name",
    "trainable",
)


class PresetModel(keras.Model):
    """Base of the models that `from_preset` makes and `save_to_preset` writes."""

    presets = catalog.METADATA
    _origin = None  # the preset that the weights come from, for the model card

    @classmethod
    def from_config(cls, config, custom_objects=None):
        return cls(**config)


def argument_names(cls):
    return [name for name in inspect.signature(cls.__init__).parameters if name != "self"]


def check_overrides(overrides, allowed):
    unknown = sorted(set(overrides) - set(allowed))
    if unknown:
        close = [
            match
            for name in unknown
            for match in difflib.get_close_matches(name, sorted(allowed), n=1, cutoff=0.75)
        ]
        meant = f"Did you mean {' and '.join(close)}? " if close else ""
        raise ValueError(
            f"`from_preset` got an override that nothing takes: {', '.join(unknown)}. {meant}"
            f"What can be overridden: {', '.join(sorted(allowed))}"
        )


def check_as_trained(cls, saved_config, overrides, source):
    """Refuses overrides that would make another function of the weights of a `cls` with
    `saved_config`.
    """
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(cls.__init__).parameters.items()
    }
    trained = {**defaults, **saved_config}
    changed = [
        name
        for name, value in overrides.items()
        if _comparable(value) != _comparable(trained[name])
    ]
    if changed:
        raise ValueError(
            f"The weights of {source} were trained with {_listed(trained, changed)}: with another "
            "value they are another model, "
            "which nobody trained. Leave the override out, or give `load_weights=False` for random "
            "weights. "
            f"Received: {_listed(overrides, changed)}"
        )


def loaded_dtype(*saved_configs):
    """The `dtype` to load the first of these with: what quantized weights were saved with, or
    `None`, Keras' global policy.
    """
    return (
        saved_configs[0].get("dtype")
        if any(_is_quantized(config.get("dtype")) for config in saved_configs)
        else None
    )


def _is_quantized(dtype):
    policy = keras.dtype_policies.get(dtype)
    policies = policy.values() if isinstance(policy, DTypePolicyMap) else [policy]
    return any(each.quantization_mode is not None for each in policies)


def _is_channels_first(config):
    return config.get("data_format") == "channels_first"


def _turned(config):
    """The image shape in the other data format."""
    first, *middle, last = config["image_shape"]
    return (*middle, last, first) if _is_channels_first(config) else (last, first, *middle)


def _comparable(value):
    """Sizes as pairs: 16, (16, 16) and JSON's [16, 16] are the same."""
    return pair(value) if isinstance(value, (numbers.Integral, tuple, list)) else value


def _listed(values, names):
    return ", ".join(f"{name}={values[name]!r}" for name in names)


def load_backbone(cls, preset, load_weights, overrides, source):
    """The preset's backbone, a `cls`, with its trained weights adapted to the overrides, or with
    random ones.
    """
    saved_config = preset.backbone_config(cls)
    config = {**saved_config, "dtype": loaded_dtype(saved_config), **overrides}
    if "image_shape" not in overrides and _is_channels_first(config) != _is_channels_first(
        saved_config
    ):
        config["image_shape"] = _turned(saved_config)
    if not load_weights:
        # Random weights are neither quantized (int8 kernels would be zeros that do not train) nor
        # frozen.
        trainable = overrides.get("trainable", True)
        return cls.from_config(
            {**config, "dtype": own_policy(overrides.get("dtype")), "trainable": trainable}
        )
    check_as_trained(
        cls, saved_config, {k: v for k, v in overrides.items() if k not in _ADAPTABLE}, source
    )
    with weights_follow():
        state = preset.backbone_state(lambda: cls.from_config(saved_config))
        # A model of HDF5 weights is a web of references; two models at once would be twice the
        # memory
        gc.collect()
        backbone = cls.from_config(config)
        state = adapt_backbone(
            state, saved_config, {**config, "data_format": backbone.data_format}, source
        )
        weights.assign(state, backbone, source)
    backbone._origin = preset.origin
    return backbone
