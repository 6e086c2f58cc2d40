"""One table that maps PyTorch tensors to our variables, used in both directions. Plain NumPy.

The table has timm's names. facebookresearch's files differ only in the names of LayerScale;
transformers' names are translated first. Sources: facebookresearch/deit at 7e160fe (models.py,
models_v2.py), timm 1.0.31, transformers 5.23.0.
"""

import dataclasses
import math
import re
from collections.abc import Callable

import numpy as np
from absl import logging

from keras_deit.arguments import as_pair
from keras_deit.presets.architecture import has_two_heads, num_channels, position_grid_size
from keras_deit.presets.mismatches import refuse_mismatches
from keras_deit.presets.tensor_values import refuse_non_finite, refuse_non_floats


@dataclasses.dataclass(frozen=True)
class Rule:
    """The tensors that one variable is made of, and the conversion in both directions."""

    names: tuple
    shapes: tuple  # of the tensors, in the order of `names`
    path: str
    to_keras: Callable  # arrays in the order of `names` -> array
    to_timm: Callable  # array -> list of arrays in the order of `names`


def rules(backbone_config, classifier_config=None):
    """Returns the table for one architecture.

    Args:
        backbone_config: dict, the arguments of a `DeiTBackbone`.
        classifier_config: dict, the arguments of a `DeiTImageClassifier`; `None` for a backbone
            alone.

    Returns:
        List of `Rule`, one for each variable.
    """
    table = [
        *_embedding_rules(backbone_config),
        *_block_rules(backbone_config),
        *_norm("norm", backbone_config["hidden_dim"], "final_norm"),
    ]
    if classifier_config is not None:
        table += _head_rules(backbone_config, classifier_config)
    return table


def _embedding_rules(backbone_config):
    channels, dim = num_channels(backbone_config), backbone_config["hidden_dim"]
    patch_size = as_pair(backbone_config["patch_size"])
    prefix_tokens = ["cls_token"]
    if backbone_config.get("use_distillation_token"):
        prefix_tokens.append("dist_token")
    num_positions = math.prod(position_grid_size(backbone_config))
    if backbone_config.get("position_scope", "all") == "all":
        num_positions += len(prefix_tokens)
    return [
        Rule(
            ("patch_embed.proj.weight",),
            ((dim, channels, *patch_size),),
            "patch_embedding/projection/kernel",
            # (D, C, ph, pw) -> (ph * pw * C, D)
            lambda w: w.transpose(2, 3, 1, 0).reshape(-1, dim),
            lambda kernel: [kernel.reshape(*patch_size, channels, dim).transpose(3, 2, 0, 1)],
        ),
        _unchanged("patch_embed.proj.bias", (dim,), "patch_embedding/projection/bias"),
        Rule(
            tuple(prefix_tokens),
            ((1, 1, dim),) * len(prefix_tokens),
            "token_position_embedding/prefix_tokens",
            lambda *tokens: np.concatenate(tokens, axis=1)[0],
            lambda tokens: [token[None, None] for token in tokens],
        ),
        Rule(
            ("pos_embed",),
            ((1, num_positions, dim),),
            "token_position_embedding/positions",
            lambda positions: positions[0],
            lambda array: [array[None]],
        ),
    ]


def _block_rules(backbone_config):
    dim, intermediate_dim = backbone_config["hidden_dim"], backbone_config["intermediate_dim"]
    table = []
    for index in range(backbone_config["num_layers"]):
        name, path = f"blocks.{index}", f"block_{index}"
        table += _norm(f"{name}.norm1", dim, f"{path}/attention_norm")
        table += _dense(f"{name}.attn.qkv", (3 * dim, dim), f"{path}/attention/qkv")
        table += _dense(f"{name}.attn.proj", (dim, dim), f"{path}/attention/projection")
        table += _norm(f"{name}.norm2", dim, f"{path}/mlp_norm")
        table += _dense(f"{name}.mlp.fc1", (intermediate_dim, dim), f"{path}/mlp/intermediate")
        table += _dense(f"{name}.mlp.fc2", (dim, intermediate_dim), f"{path}/mlp/projection")
        if backbone_config.get("layer_scale_init_value") is not None:
            table.append(_unchanged(f"{name}.ls1.gamma", (dim,), f"{path}/attention_scale/gamma"))
            table.append(_unchanged(f"{name}.ls2.gamma", (dim,), f"{path}/mlp_scale/gamma"))
    return table


def _head_rules(backbone_config, classifier_config):
    shape = (classifier_config["num_classes"], backbone_config["hidden_dim"])
    if not has_two_heads(classifier_config, backbone_config):
        return _dense("head", shape, "head")
    return [
        *_dense("head", shape, "head/class_head"),
        *_dense("head_dist", shape, "head/distillation_head"),
    ]


def to_keras(tensors, table, source):
    """Converts {tensor name: array} to {variable path: array}.

    Raises:
        ValueError: unless every tensor is used exactly once and has finite floats; the message
            lists what differs.
    """
    refuse_non_floats(tensors, source)
    refuse_mismatches(
        {name: tuple(array.shape) for name, array in tensors.items()},
        {name: shape for rule in table for name, shape in zip(rule.names, rule.shapes)},
        f"The tensors of {source} (here under timm's names) do not match the architecture.",
    )
    refuse_non_finite(tensors, source)
    return {rule.path: rule.to_keras(*(tensors[name] for name in rule.names)) for rule in table}


def to_timm(state, table):
    """Converts {variable path: array} to {tensor name: array}: the exact inverse of `to_keras`."""
    return {
        name: np.ascontiguousarray(array)
        for rule in table
        for name, array in zip(rule.names, rule.to_timm(state[rule.path]))
    }


def to_timm_names(tensors):
    """Renames the tensors of any of the three layouts to timm's names; unknown names stay."""
    renamed = {}
    for name, array in tensors.items():
        timm_name = _to_timm_name(name)
        if timm_name in renamed:
            others = [other for other in tensors if _to_timm_name(other) == timm_name]
            raise ValueError(
                f"Several tensors map to timm's {timm_name}: {', '.join(others)}. Keep one of them."
            )
        renamed[timm_name] = array
    for query in [
        name for name in renamed if re.fullmatch(r"blocks\.\d+\.attn\.query\.(weight|bias)", name)
    ]:
        names = [query.replace("query", third) for third in ("query", "key", "value")]
        if all(name in renamed for name in names):
            renamed[query.replace("query", "qkv")] = np.concatenate(
                [renamed.pop(name) for name in names]
            )
    return renamed


_BASE = r"(?:deit\.|vit\.|dinov2\.)?"  # before the names of a backbone inside another model
_ADDED = re.compile(rf"{_BASE}embeddings\.mask_token|(?:pooler\.dense|decoder\.0)\.(?:weight|bias)")


def of_backbone(tensors):
    """Drops what transformers adds to a backbone, with a warning: a pooler, the mask token of
    pre-training, and its decoder.
    """
    added = [name for name in tensors if _ADDED.fullmatch(name)]
    if added:
        logging.warning("Ignored, because `DeiTBackbone` does not use them: %s", ", ".join(added))
    return {name: array for name, array in tensors.items() if name not in added}


def to_transformers_names(tensors):
    """Renames timm's tensors to transformers' names of version 4, as in the files on the hub."""
    two_heads = "head_dist.weight" in tensors
    base = "deit." if "dist_token" in tensors else "vit."
    if "head.weight" not in tensors:
        base = ""
    renamed = {}
    for name, array in tensors.items():
        if ".attn.qkv." in name:
            for third, part in zip(("query", "key", "value"), np.split(array, 3)):
                renamed[_to_transformers_name(name.replace("qkv", third), base, two_heads)] = part
        else:
            renamed[_to_transformers_name(name, base, two_heads)] = array
    return renamed


# timm's name of a module or tensor: transformers' names in version 4 (as in the files on the hub)
# and in version 5, and those of its DINOv2; for LayerScale, facebookresearch's too. # stands for
# the block's index.
_ALIASES = {
    "cls_token": ("embeddings.cls_token",),
    "dist_token": ("embeddings.distillation_token",),
    "pos_embed": ("embeddings.position_embeddings",),
    "patch_embed.proj": ("embeddings.patch_embeddings.projection",),
    "blocks.#.norm1": (
        "encoder.layer.#.layernorm_before",
        "layers.#.layernorm_before",
        "encoder.layer.#.norm1",
    ),
    "blocks.#.attn.query": (
        "encoder.layer.#.attention.attention.query",
        "layers.#.attention.q_proj",
        "encoder.layer.#.attention.q_proj",
    ),
    "blocks.#.attn.key": (
        "encoder.layer.#.attention.attention.key",
        "layers.#.attention.k_proj",
        "encoder.layer.#.attention.k_proj",
    ),
    "blocks.#.attn.value": (
        "encoder.layer.#.attention.attention.value",
        "layers.#.attention.v_proj",
        "encoder.layer.#.attention.v_proj",
    ),
    "blocks.#.attn.proj": (
        "encoder.layer.#.attention.output.dense",
        "layers.#.attention.o_proj",
        "encoder.layer.#.attention.o_proj",
    ),
    "blocks.#.norm2": (
        "encoder.layer.#.layernorm_after",
        "layers.#.layernorm_after",
        "encoder.layer.#.norm2",
    ),
    "blocks.#.mlp.fc1": (
        "encoder.layer.#.intermediate.dense",
        "layers.#.mlp.fc1",
        "encoder.layer.#.mlp.fc1",
    ),
    "blocks.#.mlp.fc2": (
        "encoder.layer.#.output.dense",
        "layers.#.mlp.fc2",
        "encoder.layer.#.mlp.fc2",
    ),
    "blocks.#.ls1.gamma": ("blocks.#.gamma_1", "encoder.layer.#.layer_scale1.lambda1"),
    "blocks.#.ls2.gamma": ("blocks.#.gamma_2", "encoder.layer.#.layer_scale2.lambda1"),
    "norm": ("layernorm",),
    "head": ("classifier", "cls_classifier"),
    "head_dist": ("distillation_classifier",),
    "pooler.dense": ("pooler.dense",),
}
_TIMM = {alias: name for name, aliases in _ALIASES.items() for alias in aliases}


def _to_timm_name(name):
    module, index, suffix = _split(re.sub(f"^{_BASE}", "", name))
    return f"{_TIMM[module].replace('#', index)}{suffix}" if module in _TIMM else name


def _to_transformers_name(name, base, two_heads):
    module, index, suffix = _split(name)
    if module == "head" and two_heads:
        return f"cls_classifier{suffix}"
    alias = _ALIASES[module][0].replace("#", index)
    return f"{alias}{suffix}" if module.startswith("head") else f"{base}{alias}{suffix}"


def _split(name):
    """("blocks.#.mlp.fc1", "7", ".weight") of "blocks.7.mlp.fc1.weight"."""
    module, suffix = re.fullmatch(r"(.*?)(\.weight|\.bias)?", name).groups(default="")
    index = re.search(r"(?<=\.)\d+(?=\.)", module)
    return (
        (module, "", suffix)
        if index is None
        else (re.sub(r"(?<=\.)\d+(?=\.)", "#", module, count=1), index[0], suffix)
    )


def _unchanged(name, shape, path):
    return Rule((name,), (shape,), path, lambda tensor: tensor, lambda array: [array])


def _norm(name, dim, path):
    return [
        _unchanged(f"{name}.weight", (dim,), f"{path}/gamma"),
        _unchanged(f"{name}.bias", (dim,), f"{path}/beta"),
    ]


def _dense(name, shape, path):
    kernel = Rule(
        (f"{name}.weight",),
        (shape,),
        f"{path}/kernel",
        lambda weight: weight.T,
        lambda kernel: [kernel.T],
    )
    return [kernel, _unchanged(f"{name}.bias", shape[:1], f"{path}/bias")]
