"""timm's folders: what their config.json says, in our words.

Layout: `save_for_hf` and `push_to_hf_hub` of timm 1.0.31 (timm/models/_hub.py).
"""

from keras_deit.presets.catalog import ARCHITECTURES
from keras_deit.presets.imagenet import imagenet_labels
from keras_deit.presets.original import OriginalPreset
from keras_deit.presets.settings import refuse_other_settings

# Arguments of timm's constructors that say nothing about the tensors, or that are read below.
_ARGUMENTS = (
    "img_size",
    "in_chans",
    "num_classes",
    "drop_rate",
    "pos_drop_rate",
    "proj_drop_rate",
    "attn_drop_rate",
    "drop_path_rate",
)


def timm_preset(files, config):
    """`config`: the content of config.json."""
    where = files.where("config.json")
    name = str(config["architecture"]).partition(".")[0]
    if name not in ARCHITECTURES:
        raise ValueError(f"{where} is of timm's architecture {name!r}, which is no DeiT. Known: {', '.join(_plain_names())}.")
    arguments = config.get("model_args") or {}
    data = config.get("pretrained_cfg", config)
    refuse_other_settings(
        where,
        {**{key: value for key, value in arguments.items() if key not in _ARGUMENTS}, "crop_mode": data.get("crop_mode")},
        {"global_pool": ("token",), "crop_mode": ("center", "squash")},
    )
    channels, height, width = data["input_size"]
    if "img_size" in arguments:
        size = arguments["img_size"]
        height, width = (size, size) if isinstance(size, int) else size
    channels = arguments.get("in_chans", channels)
    num_classes = config.get("num_classes", data.get("num_classes"))
    return OriginalPreset(
        files,
        origin=files.handle,
        backbone={**ARCHITECTURES[name].backbone_config, "image_shape": (height, width, channels)},
        classifier={"num_classes": num_classes} if num_classes else None,
        converter={
            "image_size": (height, width),
            "crop_ratio": data["crop_pct"],
            "crop_to_aspect_ratio": data.get("crop_mode") != "squash",
            "interpolation": data["interpolation"],
            "mean": data["mean"],
            "std": data["std"],
        },
        label_names=_labels(config, num_classes),
    )


def _labels(config, num_classes):
    """timm names classes by identifiers, and describes these; without names, a thousand classes are ImageNet's."""
    names, descriptions = config.get("label_names"), config.get("label_descriptions") or {}
    if isinstance(names, dict):
        names = [names.get(str(index), str(index)) for index in range(num_classes)]
    if names:
        return [str(descriptions.get(name, name)) for name in names]
    return imagenet_labels() if num_classes == 1000 else None


def _plain_names():
    return [name for name, row in ARCHITECTURES.items() if not row.in21k]
