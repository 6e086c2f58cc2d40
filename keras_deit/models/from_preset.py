"""What `from_preset` does: overrides, backbone, head, preprocessor and labels.

The classes call `load_backbone` and `load_classifier`; `keras_deit.presets` finds and reads the
files.
"""

import contextlib
import difflib
import numbers

import keras
from absl import logging
from keras.dtype_policies import DTypePolicyMap

from keras_deit.arguments import as_pair
from keras_deit.data_formats import check_data_format, join_image_shape, split_image_shape
from keras_deit.layers.composite import own_policy
from keras_deit.layers.deit_image_converter import DeiTImageConverter
from keras_deit.layers.initialization import weights_follow
from keras_deit.layers.mlp import activation_config
from keras_deit.presets import weights
from keras_deit.presets.adaptation import adapt_backbone, adapt_head
from keras_deit.presets.architecture import has_two_heads, position_grid_size, refuse_large
from keras_deit.presets.directory import parameters_of
from keras_deit.presets.handles import find_preset

# Arguments of the classifier that a preset does not keep in its task.json
STORED_APART = ("backbone", "preprocessor", "labels")

# Arguments of the backbone that may differ from the trained ones: the weights adapt, or the
# argument concerns only training or the machine. Any other change gives a different function of
# the same weights, which nobody trained.
_ADAPTABLE = (
    "image_shape",
    "patch_size",
    "use_distillation_token",
    "dropout_rate",
    "attention_dropout_rate",
    "drop_path_rate",
    "drop_path_schedule",
    "patch_dropout_rate",
    "layer_scale_init_value",
    "layer_norm_epsilon",
    "num_merged_tokens",
    "keep_rate",
    "remat",
    "position_grid_size",
    "pad_images",
    "data_format",
    "dtype",
    "name",
    "trainable",
)
# Arguments of the classifier that say what its head reads, and their defaults
_POOLING = {"pooling": "token", "use_head_norm": False}
_CONVERTER_ARGUMENTS = ("crop_ratio", "crop_to_aspect_ratio", "interpolation", "mean", "std")


def load_backbone(cls, handle, load_weights, revision, overrides):
    """`DeiTBackbone.from_preset`."""
    _check_names(overrides, _argument_names(cls))
    preset = find_preset(handle, load_weights, revision)
    saved_config = preset.backbone_config(cls)
    refuse_large(preset.files.where(preset.backbone_file), preset.most_parameters, saved_config)
    return _build_backbone(cls, preset, saved_config, load_weights, overrides, _name(handle))


def load_classifier(cls, backbone_cls, handle, load_weights, revision, overrides):
    """`DeiTImageClassifier.from_preset`."""
    own, for_backbone, for_converter = _split_overrides(cls, backbone_cls, overrides)
    if "preprocessor" in own and for_converter:
        raise ValueError(
            "`preprocessor=` replaces the preset's preprocessor, so its arguments cannot be "
            f"overridden too. Received: preprocessor={own['preprocessor']!r} and {for_converter}"
        )
    preset, source = find_preset(handle, load_weights, revision), _name(handle)
    saved = preset.task_config(cls, STORED_APART)
    if "num_classes" not in {**(saved or {}), **own}:
        raise ValueError(f"The {source} has no head. Use `num_classes=` for a new one.")
    config = {**(saved or {}), **own}
    saved_backbone = preset.backbone_config(backbone_cls)
    refuse_large(
        preset.files.where(preset.backbone_file), preset.most_parameters, saved_backbone, saved
    )
    if _adds_distillation_token(saved_backbone, for_backbone):
        config["use_distillation_head"] = own.get("use_distillation_head", True)

    backbone = _build_backbone(
        backbone_cls, preset, saved_backbone, load_weights, for_backbone, source
    )
    if "preprocessor" not in own:
        config["preprocessor"] = _preprocessor(preset, backbone, for_converter)
    same_classes = saved is not None and config["num_classes"] == saved.get("num_classes")
    if same_classes and "labels" not in own:
        config["labels"] = preset.labels(saved["num_classes"])
    if same_classes and load_weights:
        config["dtype"] = own.get("dtype") or _loaded_dtype(saved, saved_backbone)
    else:  # a new head is neither quantized nor frozen
        config["dtype"] = own_policy(own.get("dtype") or backbone.dtype_policy)
        config["trainable"] = own.get("trainable", True)
    with _of_file(preset.files.where(preset.head_file), own):
        classifier = cls(backbone, **config)
    if load_weights and same_classes:
        _load_head(classifier, preset, saved, saved_backbone, source)
    elif load_weights and saved is not None:
        _load_pooling(classifier, preset, saved, saved_backbone, source)
    if load_weights:
        _log_head(same_classes, own, classifier.num_classes, source)
    return classifier


def _name(handle):
    """The preset in messages."""
    return f"preset {str(handle)!r}"


@contextlib.contextmanager
def _of_file(where, overrides):
    """Says which file has the arguments that a constructor refuses, unless the caller gave some."""
    try:
        yield
    except ValueError as error:
        if overrides:
            raise
        raise ValueError(f"{where} has arguments that do not fit: {error}") from error


def _argument_names(cls):
    return list(parameters_of(cls))


def _split_overrides(cls, backbone_cls, overrides):
    """The overrides of the classifier, of the backbone and of the converter; `dtype` is of both
    models.
    """
    classifier_names = [name for name in _argument_names(cls) if name != "backbone"]
    backbone_names = [
        name
        for name in _argument_names(backbone_cls)
        if name not in classifier_names or name == "dtype"
    ]
    _check_names(overrides, {*classifier_names, *backbone_names, *_CONVERTER_ARGUMENTS})
    return tuple(
        {name: value for name, value in overrides.items() if name in names}
        for names in (classifier_names, backbone_names, _CONVERTER_ARGUMENTS)
    )


def _check_names(overrides, allowed):
    unknown = sorted(set(overrides) - set(allowed))
    if unknown:
        close = [
            match
            for name in unknown
            for match in difflib.get_close_matches(name, sorted(allowed), n=1, cutoff=0.75)
        ]
        meant = f"Did you mean {' and '.join(close)}? " if close else ""
        raise ValueError(
            f"`from_preset` received unknown overrides: {', '.join(unknown)}. {meant}"
            f"Known overrides: {', '.join(sorted(allowed))}"
        )


def _build_backbone(cls, preset, saved_config, load_weights, overrides, source):
    config = {**saved_config, "dtype": _loaded_dtype(saved_config), **overrides}
    if "image_shape" not in overrides and "data_format" in overrides:
        size_and_channels = split_image_shape(
            saved_config["image_shape"], saved_config.get("data_format")
        )
        data_format = check_data_format(overrides["data_format"])
        config["image_shape"] = join_image_shape(*size_and_channels, data_format)
    if "position_grid_size" not in overrides and {"image_shape", "patch_size"} & set(overrides):
        config["position_grid_size"] = _position_grid_size(saved_config, config)
    if not load_weights:
        # Random weights are not frozen, and not quantized: int8 kernels would be zeros that cannot
        # train.
        config["dtype"] = own_policy(overrides.get("dtype"))
        config["trainable"] = overrides.get("trainable", True)
        with _of_file(preset.files.where(preset.backbone_file), overrides):
            return cls.from_config(config)
    _check_as_trained(cls, saved_config, overrides, source)
    with weights_follow():
        state = preset.backbone_state(lambda: cls.from_config(saved_config))
        with _of_file(preset.files.where(preset.backbone_file), overrides):
            backbone = cls.from_config(config)
    weights.assign(adapt_backbone(state, saved_config, backbone, source), backbone, source)
    backbone._origin = preset.origin
    return backbone


def _position_grid_size(saved_config, config):
    """The preset's own grid for images of any size; `None` resamples for one size, once."""
    image_shape, scope = config["image_shape"], config.get("position_scope")
    is_any_size = isinstance(image_shape, (tuple, list)) and None in image_shape
    return position_grid_size(saved_config) if is_any_size and scope != "rotary" else None


def _check_as_trained(cls, saved_config, overrides, source):
    """Refuses overrides that change the function which the weights were trained for."""
    defaults = {name: parameter.default for name, parameter in parameters_of(cls).items()}
    trained = {**defaults, **saved_config}
    changed = [
        name
        for name, value in overrides.items()
        if name not in _ADAPTABLE and _comparable(value) != _comparable(trained[name])
    ]
    if changed:
        raise ValueError(
            f"The weights of the {source} were trained with {_listed(trained, changed)}. Remove "
            "the override, or use `load_weights=False` for random weights. "
            f"Received: {_listed(overrides, changed)}"
        )


def _comparable(value):
    """Sizes as pairs: 16, (16, 16) and JSON's [16, 16] are equal. Functions as in a config."""
    if callable(value):
        return activation_config(keras.activations.get(value))
    return as_pair(value) if isinstance(value, (numbers.Integral, tuple, list)) else value


def _listed(values, names):
    return ", ".join(f"{name}={values[name]!r}" for name in names)


def _loaded_dtype(*saved_configs):
    """The saved `dtype` of the first config if any of them is quantized; otherwise `None`, the
    global policy.
    """
    if any(_is_quantized(config.get("dtype")) for config in saved_configs):
        return saved_configs[0].get("dtype")
    return None


def _is_quantized(dtype):
    policy = keras.dtype_policies.get(dtype)
    policies = policy.values() if isinstance(policy, DTypePolicyMap) else [policy]
    return any(each.quantization_mode is not None for each in policies)


def _adds_distillation_token(saved_config, overrides):
    return overrides.get("use_distillation_token") and not saved_config.get(
        "use_distillation_token"
    )


def _preprocessor(preset, backbone, for_converter):
    """The preset's preprocessor with its overrides and the backbone's image size, if it has one."""
    config = preset.preprocessor_config()
    if config is None:
        if for_converter:
            raise ValueError(
                "The preset has no preprocessor whose arguments could be overridden. Use "
                f"`preprocessor=DeiTImageConverter(...)`. Received: {for_converter}"
            )
        return None
    size = {"data_format": backbone.data_format}
    if None not in backbone.image_size:
        size["image_size"] = backbone.image_size
    with _of_file(preset.files.where(preset.converter_file), for_converter):
        return DeiTImageConverter.from_config({**config, **for_converter, **size})


def _load_head(classifier, preset, saved, saved_backbone, source):
    """Assigns the preset's head. A distillation head that it lacks starts as a copy."""
    for name, default in _POOLING.items():
        if getattr(classifier, name) != saved.get(name, default):
            raise ValueError(
                f"The head of the {source} was trained with another `{name}`. Remove the override, "
                f"or use `load_weights=False`. Received: {name}={getattr(classifier, name)!r}"
            )
    had_two_heads = has_two_heads(saved, saved_backbone)
    if had_two_heads and not classifier.use_distillation_head:
        raise ValueError(
            f"The {source} was trained with two heads, whose mean is the output. Remove "
            "`use_distillation_head=False`, or read one head from `token_logits`."
        )

    state = _head_state(classifier, preset, saved, saved_backbone)
    if had_two_heads != classifier.use_distillation_head:
        state = adapt_head(state, source)
    weights.assign(state, classifier._head_model, source)


def _load_pooling(classifier, preset, saved, saved_backbone, source):
    """Assigns the preset's attention pooling and norm before a new head."""
    is_same = all(
        getattr(classifier, name) == saved.get(name, default) for name, default in _POOLING.items()
    )
    if not is_same or not (classifier.attention_pooling or classifier.head_norm):
        return
    if _is_quantized(saved.get("dtype")):
        logging.warning(
            "The pooling before the new head has random weights: that of the %s is quantized.",
            source,
        )
        return
    state = _head_state(classifier, preset, saved, saved_backbone)
    new = weights.state_of(classifier._head_model)
    state = {name: array for name, array in state.items() if not name.startswith("head/")}
    state |= {name: array for name, array in new.items() if name.startswith("head/")}
    weights.assign(state, classifier._head_model, source)


def _head_state(classifier, preset, saved, saved_backbone):
    def build_saved():
        return type(classifier)(type(classifier.backbone)(**saved_backbone), **saved)._head_model

    with weights_follow():
        return preset.head_state(build_saved)


def _log_head(same_classes, own, num_classes, source):
    if not same_classes:
        logging.warning(
            "The head for %d classes has random weights: the %s has no head of that size.",
            num_classes,
            source,
        )
    elif "num_classes" in own and "labels" not in own:
        logging.warning(
            "The head for %d classes and its labels come from the %s, which has the same number "
            "of classes. For your own classes, use `labels=`.",
            num_classes,
            source,
        )
