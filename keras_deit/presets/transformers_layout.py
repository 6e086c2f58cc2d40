"""transformers' folders: what config.json and preprocessor_config.json say, in our words.

Layout and defaults: `DeiTConfig`, `ViTConfig` and their image processors in transformers 5.23.0. A value that is the default may be
left out of the file.
"""

from absl import logging

from keras_deit.presets.files import read_json
from keras_deit.presets.layout import pair
from keras_deit.presets.original import OriginalPreset
from keras_deit.presets.settings import refuse_other_settings

_BACKBONES = ("DeiTModel", "ViTModel")
_TWO_HEADS = "DeiTForImageClassificationWithTeacher"
_ARCHITECTURES = (*_BACKBONES, "DeiTForImageClassification", "ViTForImageClassification", _TWO_HEADS)
_INTERPOLATIONS = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers


def transformers_preset(files, config):
    """`config`: the content of config.json."""
    where = files.where("config.json")
    architecture = (config.get("architectures") or [None])[0]
    refuse_other_settings(
        where,
        {
            "model_type": config["model_type"],
            "architectures": architecture or "none",
            "hidden_act": config.get("hidden_act"),
            "qkv_bias": config.get("qkv_bias"),
        },
        {"model_type": ("deit", "vit"), "architectures": _ARCHITECTURES, "hidden_act": ("gelu",), "qkv_bias": (True,)},
    )
    height, width = pair(config.get("image_size", 224))
    epsilon = config.get("layer_norm_eps", 1e-12)
    if config["model_type"] == "deit" and epsilon == 1e-12:
        logging.info(
            "layer_norm_epsilon is 1e-12, as %s says. Facebook's own weights were trained with 1e-6: for a copy of theirs give "
            "layer_norm_epsilon=1e-6.",
            where,
        )
    distilled = config["model_type"] == "deit"  # also with one head, there is a distillation token
    classifier = None
    labels = config.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
    if architecture not in _BACKBONES:
        classifier = {"num_classes": len(labels), "use_distillation_head": architecture == _TWO_HEADS}
    return OriginalPreset(
        files,
        origin=files.handle,
        backbone={
            "image_shape": (height, width, config.get("num_channels", 3)),
            "patch_size": pair(config.get("patch_size", 16)),
            "num_layers": config.get("num_hidden_layers", 12),
            "num_heads": config.get("num_attention_heads", 12),
            "hidden_dim": config.get("hidden_size", 768),
            "intermediate_dim": config.get("intermediate_size", 3072),
            "use_distillation_token": distilled,
            "dropout_rate": config.get("hidden_dropout_prob", 0.0),
            "attention_dropout_rate": config.get("attention_probs_dropout_prob", 0.0),
            "layer_norm_epsilon": epsilon,
            "data_format": "channels_last",
        },
        classifier=classifier,
        converter=_converter(files),
        label_names=transformers_labels(config),
    )


def transformers_labels(config):
    """The classes' names in their order, or `None`."""
    labels = config.get("id2label")
    return [str(labels[key]) for key in sorted(labels, key=int)] if labels else None


def _converter(files):
    """Arguments of `DeiTImageConverter`, or `None` where there is no preprocessor_config.json."""
    config = read_json(files, "preprocessor_config.json")
    if config is None:
        return None
    size, crops = config["size"], config.get("do_center_crop", "crop_size" in config)
    to_aspect_ratio = isinstance(size, dict) and "shortest_edge" in size
    resized = pair(size["shortest_edge"]) if to_aspect_ratio else _height_and_width(size)
    cropped = _height_and_width(config["crop_size"]) if crops else resized
    normalizes = config.get("do_normalize", True)
    refuse_other_settings(
        files.where("preprocessor_config.json"),
        {
            "do_resize": config.get("do_resize"),
            "do_rescale": config.get("do_rescale"),
            "rescale_factor": config.get("rescale_factor"),
            "resample": config["resample"],
            "size": None if resized[0] * cropped[1] == resized[1] * cropped[0] else size,
            # An image whose shorter side alone is fixed has no size of its own without a crop.
            "do_center_crop": False if to_aspect_ratio and not crops else None,
        },
        {"do_resize": (True,), "do_rescale": (True,), "rescale_factor": (1 / 255,), "resample": tuple(_INTERPOLATIONS)},
    )
    return {
        "image_size": cropped,
        "crop_ratio": cropped[0] / resized[0],
        "crop_to_aspect_ratio": to_aspect_ratio,
        "interpolation": _INTERPOLATIONS[config["resample"]],
        "mean": config["image_mean"] if normalizes else 0.0,
        "std": config["image_std"] if normalizes else 1.0,
    }


def _height_and_width(size):
    return (size["height"], size["width"]) if isinstance(size, dict) else pair(size)
