"""One table between the tensors of the original PyTorch models and our variables, read in both
directions. Plain NumPy.

The original layout is timm's: facebookresearch's own files differ in the names of LayerScale alone.
Files of transformers are renamed to it first, and from it. Layouts: facebookresearch/deit at
7e160fe (models.py, models_v2.py), timm 1.0.31, transformers 5.23.0.
"""

import dataclasses
import math
import re
from collections.abc import Callable

import numpy as np
from absl import logging

from keras_deit.presets.layout import has_two_heads, layout, pair
from keras_deit.presets.matching import check_match


@dataclasses.dataclass(frozen=True)
class Rule:
    """Which tensors make a variable, and how each comes from the other."""

    names: tuple
    shapes: tuple  # of the tensors, in the order of `names`
    path: str
    to_keras: Callable  # arrays in the order of `names` -> array
    to_timm: Callable  # array -> list of arrays in the order of `names`


def rules(backbone_config, classifier_config=None):
    """The table for one architecture.

    Args:
        backbone_config: dict, the arguments of a `DeiTBackbone`.
        classifier_config: dict, the arguments of a `DeiTImageClassifier`; `None` for a backbone
            alone.

    Returns:
        List of `Rule`, one for each variable.
    """
    grid_size, channels, num_prefix_tokens = layout(backbone_config)
    patch_size = pair(backbone_config["patch_size"])
    dim, intermediate_dim = backbone_config["hidden_dim"], backbone_config["intermediate_dim"]
    num_positions = math.prod(grid_size)
    if backbone_config.get("position_scope", "all") == "all":
        num_positions += num_prefix_tokens
    table = [
        Rule(
            ("patch_embed.proj.weight",),
            ((dim, channels, *patch_size),),
            "patch_embedding/projection/kernel",
            # (D, C, ph, pw) -> (ph * pw * C, D)
            lambda w: w.transpose(2, 3, 1, 0).reshape(-1, dim),
            lambda kernel: [kernel.reshape(*patch_size, channels, dim).transpose(3, 2, 0, 1)],
        ),
        _as_it_is("patch_embed.proj.bias", (dim,), "patch_embedding/projection/bias"),
        Rule(
            ("cls_token", "dist_token")[:num_prefix_tokens],
            ((1, 1, dim),) * num_prefix_tokens,
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
    for index in range(backbone_config["num_layers"]):
        name, path = f"blocks.{index}", f"block_{index}"
        table += _norm(f"{name}.norm1", dim, f"{path}/attention_norm")
        table += _dense(f"{name}.attn.qkv", (3 * dim, dim), f"{path}/attention/qkv")
        table += _dense(f"{name}.attn.proj", (dim, dim), f"{path}/attention/projection")
        table += _norm(f"{name}.norm2", dim, f"{path}/mlp_norm")
        table += _dense(f"{name}.mlp.fc1", (intermediate_dim, dim), f"{path}/mlp/intermediate")
        table += _dense(f"{name}.mlp.fc2", (dim, intermediate_dim), f"{path}/mlp/projection")
        if backbone_config.get("layer_scale_init_value") is not None:
            table.append(_as_it_is(f"{name}.ls1.gamma", (dim,), f"{path}/attention_scale/gamma"))
            table.append(_as_it_is(f"{name}.ls2.gamma", (dim,), f"{path}/mlp_scale/gamma"))
    table += _norm("norm", dim, "final_norm")
    if classifier_config is not None:
        head_shape = (classifier_config["num_classes"], dim)
        if has_two_heads(classifier_config, backbone_config):
            table += _dense("head", head_shape, "head/class_head") + _dense(
                "head_dist", head_shape, "head/distillation_head"
            )
        else:
            table += _dense("head", head_shape, "head")
    return table


def to_keras(tensors, table, source):
    """{tensor name: array} to {variable path: array}; every tensor is used once, or a ValueError
    lists what does not fit.
    """
    check_match(
        {name: tuple(array.shape) for name, array in tensors.items()},
        {name: shape for rule in table for name, shape in zip(rule.names, rule.shapes)},
        f"The tensors of {source}, under timm's names, are not those of the architecture.",
    )
    return {rule.path: rule.to_keras(*(tensors[name] for name in rule.names)) for rule in table}


def to_timm(state, table):
    """{variable path: array} to {tensor name: array}, the inverse of `to_keras`, bit for bit."""
    return {
        name: np.ascontiguousarray(array)
        for rule in table
        for name, array in zip(rule.names, rule.to_timm(state[rule.path]))
    }


def to_timm_names(tensors):
    """Tensors of any of the three layouts under timm's names; names that none of them has stay as
    they are.
    """
    renamed = {}
    for name, array in tensors.items():
        timm_name = _to_timm_name(name)
        if timm_name in renamed:
            others = [other for other in tensors if _to_timm_name(other) == timm_name]
            raise ValueError(
                f"These tensors are one and the same, which timm calls {timm_name}: "
                f"{', '.join(others)}."
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


def without_pooler(tensors):
    """Of a model without a head: transformers' pooler follows the last LayerNorm there, and no part
    of DeiT is like it.
    """
    pooler = [name for name in ("pooler.dense.weight", "pooler.dense.bias") if name in tensors]
    if pooler:
        logging.warning("Left out, as DeiT has none: %s", ", ".join(pooler))
    return {name: array for name, array in tensors.items() if name not in pooler}


def to_transformers_names(tensors):
    """timm's tensors as the hub's files of transformers have them, which is as its version 4 names
    them.
    """
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


# What timm calls a module or a tensor, and what transformers calls it in version 4 (which the hub's
# files have) and in version 5; or facebookresearch, whose names are timm's but for LayerScale. # is
# a block's number.
_ALIASES = {
    "cls_token": ("embeddings.cls_token",),
    "dist_token": ("embeddings.distillation_token",),
    "pos_embed": ("embeddings.position_embeddings",),
    "patch_embed.proj": ("embeddings.patch_embeddings.projection",),
    "blocks.#.norm1": ("encoder.layer.#.layernorm_before", "layers.#.layernorm_before"),
    "blocks.#.attn.query": (
        "encoder.layer.#.attention.attention.query",
        "layers.#.attention.q_proj",
    ),
    "blocks.#.attn.key": ("encoder.layer.#.attention.attention.key", "layers.#.attention.k_proj"),
    "blocks.#.attn.value": (
        "encoder.layer.#.attention.attention.value",
        "layers.#.attention.v_proj",
    ),
    "blocks.#.attn.proj": ("encoder.layer.#.attention.output.dense", "layers.#.attention.o_proj"),
    "blocks.#.norm2": ("encoder.layer.#.layernorm_after", "layers.#.layernorm_after"),
    "blocks.#.mlp.fc1": ("encoder.layer.#.intermediate.dense", "layers.#.mlp.fc1"),
    "blocks.#.mlp.fc2": ("encoder.layer.#.output.dense", "layers.#.mlp.fc2"),
    "blocks.#.ls1.gamma": ("blocks.#.gamma_1",),
    "blocks.#.ls2.gamma": ("blocks.#.gamma_2",),
    "norm": ("layernorm",),
    "head": ("classifier", "cls_classifier"),
    "head_dist": ("distillation_classifier",),
    "pooler.dense": ("pooler.dense",),
}
_TIMM = {alias: name for name, aliases in _ALIASES.items() for alias in aliases}


def _to_timm_name(name):
    module, index, suffix = _split(re.sub(r"^(deit|vit)\.", "", name))
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


def _as_it_is(name, shape, path):
    return Rule((name,), (shape,), path, lambda tensor: tensor, lambda array: [array])


def _norm(name, dim, path):
    return [
        _as_it_is(f"{name}.weight", (dim,), f"{path}/gamma"),
        _as_it_is(f"{name}.bias", (dim,), f"{path}/beta"),
    ]


def _dense(name, shape, path):
    kernel = Rule(
        (f"{name}.weight",),
        (shape,),
        f"{path}/kernel",
        lambda weight: weight.T,
        lambda kernel: [kernel.T],
    )
    return [kernel, _as_it_is(f"{name}.bias", shape[:1], f"{path}/bias")]
