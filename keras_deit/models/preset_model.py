"""What the backbone and the classifier share about presets, and how trained weights meet another grid."""

import gc
import inspect

import keras

from keras_deit.layers.composite import own_policy
from keras_deit.layers.initialization import weights_follow
from keras_deit.presets import catalog, weights
from keras_deit.presets.adaptation import adapt_backbone


class PresetModel(keras.Model):
    """Base of the models that `from_preset` makes and `save_to_preset` writes."""

    presets = catalog.METADATA
    _origin = None  # the preset that the weights come from, for the model card

    @classmethod
    def from_config(cls, config, custom_objects=None):
        return cls(**config)


def unique_name(prefix):
    """As Keras names its layers, but that it would spell "dei_t"."""
    number = keras.backend.get_uid(prefix)
    return prefix if number == 1 else f"{prefix}_{number - 1}"


def argument_names(cls):
    return [name for name in inspect.signature(cls.__init__).parameters if name != "self"]


def check_overrides(overrides, allowed):
    unknown = sorted(set(overrides) - set(allowed))
    if unknown:
        raise ValueError(
            f"`from_preset` got an override that nothing takes: {', '.join(unknown)}. "
            f"What can be overridden: {', '.join(sorted(allowed))}"
        )


def load_backbone(cls, preset, load_weights, overrides, source):
    """The preset's backbone, a `cls`, with its trained weights adapted to the overrides, or with random ones."""
    saved_config = preset.backbone_config(cls)
    config = {**saved_config, **overrides}
    if not load_weights:
        # Random weights are neither quantized (int8 kernels would be zeros that do not train) nor frozen.
        trainable = overrides.get("trainable", True)
        return cls.from_config({**config, "dtype": own_policy(config.get("dtype")), "trainable": trainable})
    with weights_follow():
        if not overrides:
            backbone = cls.from_config(config)
            preset.load_backbone(backbone)
        else:
            state = preset.backbone_state(lambda: cls.from_config(saved_config))
            gc.collect()  # what held the saved weights is a web of references; two models at once would be twice the memory
            backbone = cls.from_config(config)
            config["data_format"] = backbone.data_format
            weights.assign(adapt_backbone(state, saved_config, config, source), backbone, source)
    backbone._origin = preset.origin
    return backbone
