"""transformers' folders and repositories: config.json and preprocessor_config.json, translated to
our arguments.

Source: the configurations of DeiT, ViT, DINOv2 and DINOv3 and their image processors in
transformers 5.24.0. The files may leave out default values.
"""

from absl import logging

from keras_deit.arguments import as_pair
from keras_deit.presets import kinds
from keras_deit.presets.pytorch.activations import GELU_TANH, QUICK_GELU
from keras_deit.presets.pytorch.config_values import (
    refuse_unsupported,
    required,
    whole_patches,
    without_nulls,
)
from keras_deit.presets.pytorch.preset import PyTorchPreset
from keras_deit.presets.sources import read_json

_PROCESSOR_FILE = "preprocessor_config.json"
_BACKBONES = (
    "DeiTModel",
    "ViTModel",
    "Dinov2Model",
    "Dinov2Backbone",
    "Dinov2WithRegistersModel",
    "Dinov2WithRegistersBackbone",
    "DINOv3ViTModel",
    "DINOv3ViTBackbone",
    "DeiTForMaskedImageModeling",
    "ViTForMaskedImageModeling",
)
# Classifiers, and what differs from one head that reads the class token
_TOKEN_AND_MEAN = {"pooling": "token_and_mean"}
_CLASSIFIERS = {
    "DeiTForImageClassification": {"use_distillation_head": False},
    "ViTForImageClassification": {"use_distillation_head": False},
    "DeiTForImageClassificationWithTeacher": {"use_distillation_head": True},
    "Dinov2ForImageClassification": _TOKEN_AND_MEAN,
    "Dinov2WithRegistersForImageClassification": _TOKEN_AND_MEAN,
}
_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": GELU_TANH,
    "gelu_pytorch_tanh": GELU_TANH,
    "quick_gelu": QUICK_GELU,
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
}
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
    # Of DINOv2 and DINOv3 alone
    "mlp_ratio": 4,
    "layerscale_value": 1.0,
    "drop_path_rate": 0.0,
    "use_swiglu_ffn": False,
    "use_gated_mlp": False,
    "attention_dropout": 0.0,
    "rope_theta": 100.0,
    "key_bias": False,
    **{name: True for name in ("query_bias", "value_bias", "proj_bias", "mlp_bias")},
}
# Where the models differ: `layer_norm_eps` and the number of register tokens
_DEFAULTS_OF_MODELS = {
    "dinov2": {"layer_norm_eps": 1e-6},
    "dinov2_with_registers": {"layer_norm_eps": 1e-6, "num_register_tokens": 4},
    "dinov3_vit": {
        "layer_norm_eps": 1e-5,
        "hidden_size": 384,
        "intermediate_size": 1536,
        "num_attention_heads": 6,
    },
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
    "dinov3_vit": {
        **_PROCESSOR_DEFAULTS,
        "image_mean": (0.485, 0.456, 0.406),
        "image_std": (0.229, 0.224, 0.225),
        "size": 224,
        "resample": 2,
        "do_center_crop": False,
    },
    "dinov2": {
        **_PROCESSOR_DEFAULTS,
        "image_mean": (0.48145466, 0.4578275, 0.40821073),
        "image_std": (0.26862954, 0.26130258, 0.27577711),
        "size": {"shortest_edge": 224},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": 224,
    },
}
_PROCESSORS["dinov2_with_registers"] = _PROCESSORS["dinov2"]

_CONFIG = {
    "model_type": kinds.TEXT,
    "architectures": kinds.list_of(kinds.TEXT, 0, 8),
    "image_size": kinds.SIZE,
    "patch_size": kinds.SIZE,
    "num_channels": kinds.CHANNELS,
    "num_hidden_layers": kinds.LAYERS,
    "num_attention_heads": kinds.WIDTH,
    "hidden_size": kinds.WIDTH,
    "intermediate_size": kinds.WIDTH,
    "hidden_act": kinds.TEXT,
    "hidden_dropout_prob": kinds.RATE,
    "attention_probs_dropout_prob": kinds.RATE,
    "layer_norm_eps": kinds.NUMBER,
    "qkv_bias": kinds.SWITCH,
    "mlp_ratio": kinds.number(0.01, 100),
    "layerscale_value": kinds.NUMBER,
    "drop_path_rate": kinds.RATE,
    "apply_layernorm": kinds.SWITCH,
    "num_register_tokens": kinds.whole(0, 2**12),
    "attention_dropout": kinds.RATE,
    "rope_theta": kinds.NUMBER,
    **{
        name: kinds.SWITCH
        for name in ("use_swiglu_ffn", "use_gated_mlp", "key_bias", "query_bias", "value_bias")
    },
    **{name: kinds.SWITCH for name in ("proj_bias", "mlp_bias")},
    "id2label": kinds.Kind(
        "a JSON object from the class indices, 0 and up, to names",
        lambda value: _is_id2label(value),
    ),
}
# Settings of which the layers have some values alone
_SUPPORTED = {
    "hidden_act": tuple(_ACTIVATIONS),
    "rope_theta": (100.0,),
    **{name: (True,) for name in ("query_bias", "value_bias", "proj_bias", "mlp_bias")},
}
_SIZE = kinds.either(kinds.SIZE, kinds.object_of(kinds.PIXELS))
_PROCESSOR = {
    "do_resize": kinds.SWITCH,
    "do_rescale": kinds.SWITCH,
    "do_normalize": kinds.SWITCH,
    "do_center_crop": kinds.SWITCH,
    "rescale_factor": kinds.number(0, 1),
    "resample": kinds.whole(0, 5),
    "size": _SIZE,
    "crop_size": _SIZE,
    "image_mean": kinds.STATISTICS,
    "image_std": kinds.STATISTICS,
}


def transformers_preset(files, config):
    """Returns a `PyTorchPreset`.

    Args:
        files: `Folder` or `Repository`.
        config: dict, the content of config.json.

    Raises:
        ValueError: if the model is not a DeiT, ViT, DINOv2 or DINOv3, or has unsupported settings.
    """
    where = files.where("config.json")
    config = without_nulls(config)
    model_type = required(config, "model_type", where)
    of_model = _DEFAULTS_OF_MODELS.get(model_type, {}) if isinstance(model_type, str) else {}
    config = {**_DEFAULTS, **of_model, **config}
    kinds.check_values(config, _CONFIG, where)
    architecture = (config.get("architectures") or ["none"])[0]
    refuse_unsupported(
        f"{where} has unsupported settings",
        {
            "architectures": architecture,
            "model_type": model_type,
            **{name: config[name] for name in _SUPPORTED},
            # Of a backbone alone, whose output it changes
            "apply_layernorm": config.get("apply_layernorm", True)
            or not architecture.endswith("Backbone"),
        },
        {
            "model_type": tuple(_PROCESSORS),
            "architectures": (*_BACKBONES, *_CLASSIFIERS),
            "apply_layernorm": (True,),
            **_SUPPORTED,
        },
    )
    labels = [config["id2label"][key] for key in sorted(config["id2label"], key=int)]
    if config["layer_norm_eps"] == 1e-12 and len(labels) == 1000:
        logging.warning(
            "layer_norm_epsilon is 1e-12, from %s. facebook's DeiT weights were trained with 1e-6: "
            "if these are facebook's, use layer_norm_epsilon=1e-6.",
            where,
        )
    classifier = None
    if architecture in _CLASSIFIERS:
        classifier = {"num_classes": len(labels), **_CLASSIFIERS[architecture]}
    return PyTorchPreset(
        files,
        origin=files.handle,
        backbone=_backbone(config, model_type, where),
        classifier=classifier,
        converter=lambda: _converter(files, model_type),
        label_names=labels,
        zeros=_tensors_of_zeros(config, model_type),
        has_class_position=model_type == "dinov2_with_registers",
        converter_file=_PROCESSOR_FILE,
    )


def _backbone(config, model_type, where):
    """Arguments of `DeiTBackbone`."""
    image_size = whole_patches(as_pair(config["image_size"]), config["patch_size"], where)
    backbone = {
        "image_shape": (*image_size, config["num_channels"]),
        "patch_size": as_pair(config["patch_size"]),
        "num_layers": config["num_hidden_layers"],
        "num_heads": config["num_attention_heads"],
        "hidden_dim": config["hidden_size"],
        "intermediate_dim": config["intermediate_size"],
        "use_distillation_token": model_type == "deit",  # even with one head
        "dropout_rate": config["hidden_dropout_prob"],
        "attention_dropout_rate": config["attention_probs_dropout_prob"],
        "layer_norm_epsilon": config["layer_norm_eps"],
        "activation": _ACTIVATIONS[config["hidden_act"]],
        "data_format": "channels_last",
    }
    if model_type in ("deit", "vit"):
        return backbone
    backbone["layer_scale_init_value"] = config["layerscale_value"]
    backbone["drop_path_rate"] = config["drop_path_rate"]
    backbone["num_register_tokens"] = config.get("num_register_tokens", 0)
    if model_type == "dinov3_vit":
        return {
            **backbone,
            "position_scope": "rotary",
            "attention_dropout_rate": config["attention_dropout"],
            "use_gated_mlp": config["use_gated_mlp"],
        }
    if model_type == "dinov2_with_registers":
        # The position of the class token is added to the token itself.
        backbone["position_scope"] = "patches"
    backbone["intermediate_dim"] = int(config["hidden_size"] * config["mlp_ratio"])
    if config["use_swiglu_ffn"]:
        # Two thirds, rounded up to a multiple of 8
        width = -(-int(backbone["intermediate_dim"] * 2 / 3) // 8) * 8
        backbone.update(intermediate_dim=width, use_gated_mlp=True, activation="silu")
    return backbone


def _tensors_of_zeros(config, model_type):
    """Names of the tensors that the model lacks and that are zeros in ours: regular expression, or
    `None`.
    """
    if model_type == "dinov3_vit":
        return None if config["key_bias"] else r"blocks\.\d+\.attn\.key\.bias"
    return None if config["qkv_bias"] else r"blocks\.\d+\.attn\.qkv\.bias"


def _is_id2label(value):
    return (
        kinds.is_object(value)
        and set(value) == {str(index) for index in range(len(value))}
        and all(kinds.is_text(name) for name in value.values())
    )


def _converter(files, model_type):
    """Arguments of `DeiTImageConverter`, or `None` without a preprocessor_config.json."""
    content = read_json(files, _PROCESSOR_FILE)
    if content is None:
        return None
    where = files.where(_PROCESSOR_FILE)
    problem = (
        f"{where} has preprocessing that `DeiTImageConverter` does not support, so "
        "use your own `preprocessor=`"
    )
    kinds.check_values(content, {}, where)
    content = {
        name: without_nulls(value) if name in ("size", "crop_size") and value else value
        for name, value in content.items()
    }
    config = {**_PROCESSORS[model_type], **without_nulls(content)}
    kinds.check_values(config, _PROCESSOR, where)
    size, crops = config["size"], config["do_center_crop"]
    to_aspect_ratio = isinstance(size, dict) and "shortest_edge" in size
    refuse_unsupported(
        problem,
        {
            **{
                name: config[name]
                for name in ("do_resize", "do_rescale", "rescale_factor", "resample")
            },
            # Resizing the shorter side alone gives no fixed size without a crop.
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
    resized = as_pair(size["shortest_edge"]) if to_aspect_ratio else _height_and_width(size, where)
    cropped = _height_and_width(required(config, "crop_size", where), where) if crops else resized
    if resized[0] * cropped[1] != resized[1] * cropped[0] or cropped[0] > resized[0]:
        raise ValueError(
            f"{problem}: the crop {cropped} is larger than the resized image {resized}, or has "
            "another aspect ratio."
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
    return as_pair(size)
