"""transformers' folders: what config.json and preprocessor_config.json say, in our words.

Layout and defaults: `DeiTConfig`, `ViTConfig` and their image processors in transformers 5.23.0. A
value that is the default may be left out of the files.
"""

from absl import logging

from keras_deit.presets.files import read_json
from keras_deit.presets.layout import pair
from keras_deit.presets.original import OriginalPreset
from keras_deit.presets.settings import given, refuse_others, required

_BACKBONES = ("DeiTModel", "ViTModel")
_TWO_HEADS = "DeiTForImageClassificationWithTeacher"
_ARCHITECTURES = (
    *_BACKBONES,
    "DeiTForImageClassification",
    "ViTForImageClassification",
    _TWO_HEADS,
)
_DEFAULTS = {
    "image_size": 224,
    "patch_size": 16,
    "num_channels": 3,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "layer_norm_eps": 1e-12,
    "qkv_bias": True,
    "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
}

_INTERPOLATIONS = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers
_PROCESSOR_DEFAULTS = {
    "do_resize": True,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": (0.5, 0.5, 0.5),
    "image_std": (0.5, 0.5, 0.5),
}
_PROCESSORS = {
    "deit": {
        **_PROCESSOR_DEFAULTS,
        "size": 256,
        "resample": 3,
        "do_center_crop": True,
        "crop_size": 224,
    },
    "vit": {**_PROCESSOR_DEFAULTS, "size": 224, "resample": 2, "do_center_crop": False},
}


def transformers_preset(files, config):
    """`config`: the content of config.json, a dict."""
    where = files.where("config.json")
    architecture = (config.get("architectures") or ["none"])[0]
    model_type = config["model_type"]
    config = {**_DEFAULTS, **given(config)}
    refuse_others(
        f"{where} describes a model that is no DeiT",
        {
            "architectures": architecture,
            **{name: config[name] for name in ("model_type", "hidden_act", "qkv_bias")},
        },
        {
            "model_type": ("deit", "vit"),
            "architectures": _ARCHITECTURES,
            "hidden_act": ("gelu",),
            "qkv_bias": (True,),
        },
    )
    labels = _labels(config["id2label"], where)
    if config["layer_norm_eps"] == 1e-12 and len(labels) == 1000:
        logging.warning(
            "layer_norm_epsilon is 1e-12, as %s says. If these are facebook's own DeiT weights, "
            "they were trained with 1e-6: give "
            "layer_norm_epsilon=1e-6.",
            where,
        )
    classifier = None
    if architecture not in _BACKBONES:
        classifier = {
            "num_classes": len(labels),
            "use_distillation_head": architecture == _TWO_HEADS,
        }
    return OriginalPreset(
        files,
        origin=files.handle,
        backbone={
            "image_shape": (*pair(config["image_size"]), config["num_channels"]),
            "patch_size": pair(config["patch_size"]),
            "num_layers": config["num_hidden_layers"],
            "num_heads": config["num_attention_heads"],
            "hidden_dim": config["hidden_size"],
            "intermediate_dim": config["intermediate_size"],
            "use_distillation_token": model_type == "deit",  # with one head, too
            "dropout_rate": config["hidden_dropout_prob"],
            "attention_dropout_rate": config["attention_probs_dropout_prob"],
            "layer_norm_epsilon": config["layer_norm_eps"],
            "data_format": "channels_last",
        },
        classifier=classifier,
        converter=lambda: _converter(files, model_type),
        label_names=labels,
    )


def _labels(id2label, where):
    """The classes' names in their order."""
    try:
        return [str(id2label[key]) for key in sorted(id2label, key=int)]
    except (TypeError, ValueError, IndexError) as error:
        raise ValueError(
            f"{where} must map the classes' numbers to names in 'id2label'. Received: {id2label!r}"
        ) from error


def _converter(files, model_type):
    """Arguments of `DeiTImageConverter`, or `None` where there is no preprocessor_config.json."""
    content = read_json(files, "preprocessor_config.json")
    if content is None:
        return None
    where = files.where("preprocessor_config.json")
    problem = f"{where} describes preprocessing that `DeiTImageConverter` does not have. Give `preprocessor=`"
    if not isinstance(content, dict):
        raise ValueError(f"{where} must be a JSON object. Received: {content!r}")
    config = {**_PROCESSORS[model_type], **given(content)}
    size, crops = config["size"], config["do_center_crop"]
    to_aspect_ratio = isinstance(size, dict) and "shortest_edge" in size
    refuse_others(
        problem,
        {
            **{
                name: config[name]
                for name in ("do_resize", "do_rescale", "rescale_factor", "resample")
            },
            # An image whose shorter side alone is fixed has no size of its own without a crop.
            "do_center_crop": crops or not to_aspect_ratio,
        },
        {
            "do_resize": (True,),
            "do_rescale": (True,),
            "rescale_factor": (1 / 255,),
            "resample": tuple(_INTERPOLATIONS),
            "do_center_crop": (True,),
        },
    )
    resized = pair(size["shortest_edge"]) if to_aspect_ratio else _height_and_width(size, where)
    cropped = _height_and_width(required(config, "crop_size", where), where) if crops else resized
    if resized[0] * cropped[1] != resized[1] * cropped[0] or cropped[0] > resized[0]:
        raise ValueError(
            f"{problem}: a crop of {cropped} from {resized}, which is smaller or of another shape."
        )
    return {
        "image_size": cropped,
        "crop_ratio": cropped[0] / resized[0],
        "crop_to_aspect_ratio": to_aspect_ratio,
        "interpolation": _INTERPOLATIONS[config["resample"]],
        "mean": config["image_mean"] if config["do_normalize"] else 0.0,
        "std": config["image_std"] if config["do_normalize"] else 1.0,
    }


def _height_and_width(size, where):
    if isinstance(size, dict):
        return required(size, "height", where), required(size, "width", where)
    return pair(size)
