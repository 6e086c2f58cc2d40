"""One table between the tensors of the original PyTorch models and our variables, read in both directions. Plain NumPy.

The original layout is timm's: facebookresearch's own files differ in the names of LayerScale alone. Files of transformers are
renamed to it first. Layouts: facebookresearch/deit at 7e160fe (models.py, models_v2.py), timm 1.0.31, transformers 5.23.0.
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
        classifier_config: dict, the arguments of a `DeiTImageClassifier`; `None` for a backbone alone.

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
            table += _dense("head", head_shape, "head/class_head") + _dense("head_dist", head_shape, "head/distillation_head")
        else:
            table += _dense("head", head_shape, "head")
    return table


def to_keras(tensors, table, source):
    """{tensor name: array} to {variable path: array}; every tensor is used once, or a ValueError lists what does not fit."""
    check_match(
        {name: tuple(array.shape) for name, array in tensors.items()},
        {name: shape for rule in table for name, shape in zip(rule.names, rule.shapes)},
        f"The tensors of {source} are not those of the architecture.",
    )
    return {rule.path: rule.to_keras(*(tensors[name] for name in rule.names)) for rule in table}


def to_timm(state, table):
    """{variable path: array} to {tensor name: array}, the inverse of `to_keras`, bit for bit."""
    return {
        name: np.ascontiguousarray(array) for rule in table for name, array in zip(rule.names, rule.to_timm(state[rule.path]))
    }


def to_timm_names(tensors):
    """Tensors of any of the three layouts under timm's names; names that none of them has stay as they are.

    The pooler of transformers' models without a head is left out, which a log line says: it follows the last LayerNorm, and no part
    of DeiT is like it.
    """
    tensors = {_rename(name): array for name, array in tensors.items()}
    for part in ("weight", "bias"):
        for query in [name for name in tensors if re.fullmatch(rf"blocks\.\d+\.attn\.query\.{part}", name)]:
            names = [query.replace(".query.", f".{third}.") for third in ("query", "key", "value")]
            if all(name in tensors for name in names):
                tensors[query.replace(".query.", ".qkv.")] = np.concatenate([tensors.pop(name) for name in names])
    pooler = [name for name in ("pooler.dense.weight", "pooler.dense.bias") if name in tensors]
    if pooler:
        logging.info("Left out, as DeiT has none: %s", ", ".join(pooler))
    return {name: array for name, array in tensors.items() if name not in pooler}


# transformers' names, of version 4 (which the hub's files have) and of version 5, and facebookresearch's LayerScale.
_RENAMES = (
    (r"(?:deit|vit)\.(.*)", r"\1"),
    (r"embeddings\.cls_token", "cls_token"),
    (r"embeddings\.distillation_token", "dist_token"),
    (r"embeddings\.position_embeddings", "pos_embed"),
    (r"embeddings\.patch_embeddings\.projection\.(.*)", r"patch_embed.proj.\1"),
    (r"(?:encoder\.layer|layers)\.(\d+)\.(.*)", r"blocks.\1.\2"),
    (r"(blocks\.\d+)\.attention\.attention\.(query|key|value)\.(.*)", r"\1.attn.\2.\3"),
    (r"(blocks\.\d+)\.attention\.q_proj\.(.*)", r"\1.attn.query.\2"),
    (r"(blocks\.\d+)\.attention\.k_proj\.(.*)", r"\1.attn.key.\2"),
    (r"(blocks\.\d+)\.attention\.v_proj\.(.*)", r"\1.attn.value.\2"),
    (r"(blocks\.\d+)\.attention\.(?:output\.dense|o_proj)\.(.*)", r"\1.attn.proj.\2"),
    (r"(blocks\.\d+)\.intermediate\.dense\.(.*)", r"\1.mlp.fc1.\2"),
    (r"(blocks\.\d+)\.output\.dense\.(.*)", r"\1.mlp.fc2.\2"),
    (r"(blocks\.\d+)\.layernorm_before\.(.*)", r"\1.norm1.\2"),
    (r"(blocks\.\d+)\.layernorm_after\.(.*)", r"\1.norm2.\2"),
    (r"(blocks\.\d+)\.gamma_([12])", r"\1.ls\2.gamma"),
    (r"layernorm\.(weight|bias)", r"norm.\1"),
    (r"(?:cls_classifier|classifier)\.(.*)", r"head.\1"),
    (r"distillation_classifier\.(.*)", r"head_dist.\1"),
)


def _rename(name):
    for pattern, replacement in _RENAMES:
        if match := re.fullmatch(pattern, name):
            name = match.expand(replacement)
    return name


def _as_it_is(name, shape, path):
    return Rule((name,), (shape,), path, lambda tensor: tensor, lambda array: [array])


def _norm(name, dim, path):
    return [_as_it_is(f"{name}.weight", (dim,), f"{path}/gamma"), _as_it_is(f"{name}.bias", (dim,), f"{path}/beta")]


def _dense(name, shape, path):
    kernel = Rule((f"{name}.weight",), (shape,), f"{path}/kernel", lambda weight: weight.T, lambda kernel: [kernel.T])
    return [kernel, _as_it_is(f"{name}.bias", shape[:1], f"{path}/bias")]
