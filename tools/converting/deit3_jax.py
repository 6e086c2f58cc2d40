"""Models of affjljoo3581/deit3-jax: the architecture and the weights of a checkpoint.

Source: affjljoo3581/deit3-jax at 753d01b, src/modeling.py and the folder config.
"""

import dataclasses
import math
import re
from collections.abc import Callable

from keras_deit import presets
from keras_deit.layers import DeiTImageConverter, gelu_tanh
from keras_deit.models import DeiTBackbone, DeiTImageClassifier
from keras_deit.presets.mismatches import refuse_mismatches


@dataclasses.dataclass(frozen=True)
class Rule:
    """A tensor of deit3-jax, and the same in timm's layout."""

    name: str
    shape: tuple
    timm_name: str
    to_timm: Callable  # array -> array


def build(arrays, source):
    """The classifier of a checkpoint, or its backbone if it has no head.

    The shapes tell the architecture, also the number of heads.

    Args:
        arrays: {name: NumPy array}, as `read_arrays` returns it.
        source: string, name of the checkpoint in errors.

    Raises:
        ValueError: if tensors are missing, left over, of a wrong shape, NaN or infinite.
    """
    arrays = {name.removeprefix("model/"): array for name, array in arrays.items()}
    config = _backbone_config(arrays)
    num_classes = arrays["head/bias"].size if "head/bias" in arrays else None
    table = _rules(config, num_classes)
    refuse_mismatches(
        {name: array.shape for name, array in arrays.items()},
        {rule.name: rule.shape for rule in table},
        f"The tensors of {source} are not those of a model of deit3-jax.",
    )
    model = DeiTBackbone(**config)
    if num_classes is not None:
        model = _classifier(model, num_classes)
    tensors = {rule.timm_name: rule.to_timm(arrays[rule.name]) for rule in table}
    presets.assign_tensors(model, tensors, source)
    return model


def _backbone_config(arrays):
    """Arguments of a `DeiTBackbone`."""
    rows, columns, dim = _shape(arrays, "embed/wpe", 3)
    patch_height, patch_width, channels, _ = _shape(arrays, "embed/wte/kernel", 4)
    _, num_heads, _ = _shape(arrays, "layer_0/attn/wq/kernel", 3)
    _, intermediate_dim = _shape(arrays, "layer_0/ff/w1/kernel", 2)
    return {
        "image_shape": (rows * patch_height, columns * patch_width, channels),
        "patch_size": (patch_height, patch_width),
        "num_layers": len({name.split("/")[0] for name in arrays if re.match("layer_", name)}),
        "num_heads": num_heads,
        "hidden_dim": dim,
        "intermediate_dim": intermediate_dim,
        "position_scope": "patches",
        "drop_path_schedule": "constant",
        "activation": gelu_tanh,  # Flax's default
        "layer_scale_init_value": 1e-4 if "layer_0/scale1" in arrays else None,
        "data_format": "channels_last",
    }


def _shape(arrays, name, rank):
    """The shape of a tensor that every model has."""
    shape = arrays[name].shape if name in arrays else None
    if shape is None or len(shape) != rank or 0 in shape:
        raise ValueError(
            f"A checkpoint of deit3-jax with learned positions has model/{name}, with {rank} axes. "
            f"Received: {'no such tensor' if shape is None else f'shape {shape}'}"
        )
    return shape


def _rules(config, num_classes):
    """One `Rule` for each tensor."""
    dim, intermediate_dim = config["hidden_dim"], config["intermediate_dim"]
    (height, width, channels), patch_size = config["image_shape"], config["patch_size"]
    grid_size = (height // patch_size[0], width // patch_size[1])
    table = [
        Rule("embed/cls_token", (1, 1, dim), "cls_token", lambda token: token),
        Rule("embed/wpe", (*grid_size, dim), "pos_embed", lambda wpe: wpe.reshape(1, -1, dim)),
        Rule(
            "embed/wte/kernel",
            (*patch_size, channels, dim),
            "patch_embed.proj.weight",
            lambda kernel: kernel.transpose(3, 2, 0, 1),
        ),
        Rule("embed/wte/bias", (dim,), "patch_embed.proj.bias", lambda bias: bias),
        *_norm("norm", dim, "norm"),
    ]
    for index in range(config["num_layers"]):
        layer, block = f"layer_{index}", f"blocks.{index}"
        table += _norm(f"{layer}/norm1", dim, f"{block}.norm1")
        table += _norm(f"{layer}/norm2", dim, f"{block}.norm2")
        heads = (config["num_heads"], dim // config["num_heads"])
        # timm's names of separate parts, which `assign_tensors` joins
        for part, name in (("wq", "query"), ("wk", "key"), ("wv", "value")):
            table += _dense(f"{layer}/attn/{part}", (dim,), heads, f"{block}.attn.{name}")
        table += _dense(f"{layer}/attn/wo", heads, (dim,), f"{block}.attn.proj")
        table += _dense(f"{layer}/ff/w1", (dim,), (intermediate_dim,), f"{block}.mlp.fc1")
        table += _dense(f"{layer}/ff/w2", (intermediate_dim,), (dim,), f"{block}.mlp.fc2")
        if config["layer_scale_init_value"] is not None:
            for scale in ("1", "2"):
                name, timm_name = f"{layer}/scale{scale}", f"{block}.ls{scale}.gamma"
                table.append(Rule(name, (dim,), timm_name, lambda gamma: gamma))
    if num_classes is not None:
        table += _dense("head", (dim,), (num_classes,), "head")
    return table


def _norm(name, dim, timm_name):
    return [
        Rule(f"{name}/scale", (dim,), f"{timm_name}.weight", lambda scale: scale),
        Rule(f"{name}/bias", (dim,), f"{timm_name}.bias", lambda bias: bias),
    ]


def _dense(name, inputs, outputs, timm_name):
    """A kernel of shape (*inputs, *outputs), either of which may be (heads, head_dim)."""
    size = math.prod(inputs)
    return [
        Rule(
            f"{name}/kernel",
            (*inputs, *outputs),
            f"{timm_name}.weight",
            lambda kernel: kernel.reshape(size, -1).T,
        ),
        Rule(f"{name}/bias", outputs, f"{timm_name}.bias", lambda bias: bias.reshape(-1)),
    ]


def _classifier(backbone, num_classes):
    """With the preprocessing of the evaluation: all DeiT III, and they alone, have LayerScale."""
    converter = DeiTImageConverter(
        backbone.image_size,
        crop_ratio=0.875 if backbone.layer_scale_init_value is None else 1.0,
        data_format="channels_last",
    )
    labels = list(presets.imagenet_labels()) if num_classes == 1000 else None
    return DeiTImageClassifier(backbone, num_classes, preprocessor=converter, labels=labels)
