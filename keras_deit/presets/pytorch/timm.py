"""timm's folders and repositories: their config.json, translated to our arguments.

Source: `save_for_hf` and `push_to_hf_hub` of timm 1.0.31 (timm/models/_hub.py).
"""

from keras_deit.arguments import as_pair
from keras_deit.presets import kinds
from keras_deit.presets.imagenet import imagenet_labels
from keras_deit.presets.pytorch import timm_architectures
from keras_deit.presets.pytorch.config_values import (
    refuse_unsupported,
    required,
    whole_patches,
    without_nulls,
)
from keras_deit.presets.pytorch.preset import PyTorchPreset

# Arguments of timm's constructors that are read, and those that change neither weights nor outputs
_MODEL_ARGS = {
    **timm_architectures.ARGUMENTS,
    "img_size": kinds.SIZE,
    "in_chans": kinds.CHANNELS,
    "num_classes": kinds.whole(0, 10**6),
    "global_pool": kinds.TEXT,
}
_HARMLESS = (
    "dynamic_img_size",
    "dynamic_img_pad",
    "strict_img_size",
    "drop_rate",
    "pos_drop_rate",
    "proj_drop_rate",
    "patch_drop_rate",
)


_LABELS = kinds.either(kinds.list_of(kinds.TEXT), kinds.object_of(kinds.TEXT))
_CONFIG = {
    "architecture": kinds.TEXT,
    "global_pool": kinds.TEXT,
    "num_classes": kinds.whole(0, 10**6),
    "model_args": kinds.OBJECT,
    "pretrained_cfg": kinds.OBJECT,
}
_DATA = {
    "num_classes": kinds.whole(0, 10**6),
    "input_size": kinds.list_of(kinds.PIXELS, 3, 3),
    "crop_pct": kinds.number(0.01, 1),
    "crop_mode": kinds.TEXT,
    "interpolation": kinds.TEXT,
    "mean": kinds.STATISTICS,
    "std": kinds.STATISTICS,
    "label_names": _LABELS,
    "labels": _LABELS,
    "label_descriptions": kinds.object_of(kinds.TEXT),
}


def timm_preset(files, config):
    """Returns a `PyTorchPreset`.

    Args:
        files: `Folder` or `Repository`.
        config: dict, the content of config.json.

    Raises:
        ValueError: if the model is no plain vision transformer or has unsupported settings.
    """
    where = files.where("config.json")
    config = without_nulls(config)
    kinds.check_values(config, {**_DATA, **_CONFIG}, where)
    name = required(config, "architecture", where).partition(".")[0]
    named = timm_architectures.named_arguments(name)
    if named is None:
        raise ValueError(
            f"{where} has timm's architecture {name!r}, which is not supported. "
            f"Supported: {'; '.join(timm_architectures.PATTERNS)}."
        )
    given = config.get("model_args") or {}
    if isinstance(given, dict):
        # Only here does `null` differ from a missing argument: it is no LayerScale.
        given = {
            name: value
            for name, value in given.items()
            if value is not None or name == "init_values"
        }
    kinds.check_values(given, _MODEL_ARGS, f"'model_args' of {where}")
    data = without_nulls(config.get("pretrained_cfg", config))
    kinds.check_values(data, _DATA, f"'pretrained_cfg' of {where}")
    num_classes = config.get("num_classes", data.get("num_classes", 1000))
    backbone, arguments = named
    saved = {"global_pool": config["global_pool"]} if "global_pool" in config else {}
    arguments = {**arguments, **saved, **given}
    if not num_classes and not arguments.get("global_pool"):
        arguments["global_pool"] = "token"  # without a head, "" is no pooling
    is_map = arguments.get("global_pool") == "map"
    refuse_unsupported(
        f"{where} has unsupported settings",
        {
            "global_pool": arguments.get("global_pool", "token"),
            # Its pooling has an MLP without a gate, of another width.
            "mlp_layer": arguments.get("mlp_layer") if is_map else None,
            **{key: value for key, value in given.items() if key not in (*_MODEL_ARGS, *_HARMLESS)},
        },
        {
            "global_pool": ("token", "avg", "map"),
            "mlp_layer": (None,),
            "pool_include_prefix": (False,),
        },
    )
    channels, height, width = required(data, "input_size", where)
    height, width = as_pair(given.get("img_size", (height, width)))
    backbone, classifier = timm_architectures.translated(backbone, arguments)
    height, width = whole_patches((height, width), backbone["patch_size"], where)
    image_shape = (height, width, given.get("in_chans", channels))
    return PyTorchPreset(
        files,
        origin=files.handle,
        backbone={**backbone, "image_shape": image_shape},
        classifier={"num_classes": num_classes, **classifier} if num_classes else classifier,
        converter=lambda: _converter(data, (height, width), where),
        label_names=_labels({**data, **config}, num_classes),
        zeros=timm_architectures.tensors_of_zeros(arguments),
    )


def _converter(data, image_size, where):
    crop_mode = data.get("crop_mode", "center")
    refuse_unsupported(
        f"{where} has preprocessing that `DeiTImageConverter` does not support, so "
        "use your own `preprocessor=`",
        {"crop_mode": crop_mode},
        {"crop_mode": ("center", "squash")},
    )
    return {
        "image_size": image_size,
        "crop_ratio": required(data, "crop_pct", where),
        "crop_to_aspect_ratio": crop_mode == "center",
        "interpolation": required(data, "interpolation", where),
        "mean": required(data, "mean", where),
        "std": required(data, "std", where),
    }


def _labels(config, num_classes):
    """Class names: descriptions of timm's identifiers. 1000 classes without names are ImageNet."""
    names = config.get("label_names", config.get("labels"))
    descriptions = config.get("label_descriptions", {})
    if isinstance(names, dict):
        names = [names.get(str(index), str(index)) for index in range(num_classes)]
    if names:
        return [descriptions.get(name, name) for name in names]
    return list(imagenet_labels()) if num_classes == 1000 else None
