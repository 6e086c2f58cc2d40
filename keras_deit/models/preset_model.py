"""What the backbone and the classifier share about presets, and how trained weights meet another grid."""

import inspect

import keras

from keras_deit.presets import catalog, weights
from keras_deit.presets.positions import resample_positions


class PresetModel(keras.Model):
    """Base of the models that `from_preset` makes and `save_to_preset` writes."""

    presets = catalog.METADATA

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


def load_backbone_weights(preset, backbone, saved_config, overridden, source):
    """Gives `backbone` the preset's weights, which were saved with `saved_config`; positions adapt to its grid."""
    if not overridden:
        preset.load_backbone(backbone)
        return
    saved = type(backbone).from_config(saved_config)
    preset.load_backbone(saved)
    state = weights.state_of(saved)
    path = backbone.token_position_embedding.positions.path
    num_prefix_positions = saved.num_prefix_tokens if saved.position_scope == "all" else 0
    state[path] = resample_positions(state[path], num_prefix_positions, saved.grid_size, backbone.grid_size)
    weights.assign(state, backbone, source)
