"""One table between the tensors of the original PyTorch models and our variables, read in both directions. Plain NumPy.

The original layout is timm's: facebookresearch's own files differ in the names of LayerScale alone. Files of transformers are
renamed to it first. Layouts: facebookresearch/deit at 7e160fe (models.py, models_v2.py), timm 1.0.31, transformers 5.23.0.
"""

import dataclasses
import re
from collections.abc import Callable

import numpy as np

from keras_deit.presets.listing import listed


@dataclasses.dataclass(frozen=True)
class Rule:
    """Which tensors make a variable, and how each comes from the other."""

    names: tuple
    path: str
    to_keras: Callable  # arrays in the order of `names` -> array
    to_timm: Callable  # array -> list of arrays in the order of `names`


def rules(backbone_config, head="none"):
    """The table for one architecture.

    Args:
        backbone_config: dict, the arguments of a `DeiTBackbone`.
        head: `"none"` for a backbone alone, `"plain"` or `"distilled"` for a classifier.

    Returns:
        List of `Rule`, one for each variable.
    """
    patch_size = backbone_config["patch_size"]
    patch_size = (patch_size, patch_size) if isinstance(patch_size, int) else tuple(patch_size)
    prefix = ("cls_token", "dist_token") if backbone_config.get("use_distillation_token") else ("cls_token",)
    table = [
        Rule(
            ("patch_embed.proj.weight",),
            "patch_embedding/projection/kernel",
            # (D, C, ph, pw) -> (ph * pw * C, D)
            lambda w: w.transpose(2, 3, 1, 0).reshape(-1, w.shape[0]),
            lambda kernel: [kernel.reshape(*patch_size, -1, kernel.shape[-1]).transpose(3, 2, 0, 1)],
        ),
        _as_it_is("patch_embed.proj.bias", "patch_embedding/projection/bias"),
        Rule(
            prefix,
            "token_position_embedding/prefix_tokens",
            lambda *tokens: np.concatenate(tokens, axis=1)[0],
            lambda tokens: [token[None, None] for token in tokens],
        ),
        Rule(("pos_embed",), "token_position_embedding/positions", lambda positions: positions[0], lambda array: [array[None]]),
    ]
    for index in range(backbone_config["num_layers"]):
        name, path = f"blocks.{index}", f"block_{index}"
        table += _norm(f"{name}.norm1", f"{path}/attention_norm")
        table += _dense(f"{name}.attn.qkv", f"{path}/attention/qkv")
        table += _dense(f"{name}.attn.proj", f"{path}/attention/projection")
        table += _norm(f"{name}.norm2", f"{path}/mlp_norm")
        table += _dense(f"{name}.mlp.fc1", f"{path}/mlp/intermediate")
        table += _dense(f"{name}.mlp.fc2", f"{path}/mlp/projection")
        if backbone_config.get("layer_scale_init_value") is not None:
            table.append(_as_it_is(f"{name}.ls1.gamma", f"{path}/attention_scale/gamma"))
            table.append(_as_it_is(f"{name}.ls2.gamma", f"{path}/mlp_scale/gamma"))
    table += _norm("norm", "final_norm")
    if head == "plain":
        table += _dense("head", "head")
    elif head == "distilled":
        table += _dense("head", "head/class_head") + _dense("head_dist", "head/distillation_head")
    return table


def to_keras(tensors, table, source):
    """{tensor name: array} to {variable path: array}; every tensor is used once, or a ValueError lists what does not fit."""
    expected = [name for rule in table for name in rule.names]
    missing = [name for name in expected if name not in tensors]
    left_over = [f"{name} {tuple(tensors[name].shape)}" for name in tensors if name not in set(expected)]
    if missing or left_over:
        raise ValueError(
            f"The tensors of {source} are not those of the architecture.\n"
            f"Missing: {listed(missing)}\nLeft over: {listed(left_over)}"
        )
    return {rule.path: rule.to_keras(*(tensors[name] for name in rule.names)) for rule in table}


def to_timm(state, table):
    """{variable path: array} to {tensor name: array}, the inverse of `to_keras`, bit for bit."""
    return {
        name: np.ascontiguousarray(array) for rule in table for name, array in zip(rule.names, rule.to_timm(state[rule.path]))
    }


def to_timm_names(tensors):
    """Tensors of any of the three layouts under timm's names; names that none of them has stay as they are."""
    tensors = {_rename(name): array for name, array in tensors.items()}
    for part in ("weight", "bias"):
        for query in [name for name in tensors if re.fullmatch(rf"blocks\.\d+\.attn\.query\.{part}", name)]:
            names = [query.replace(".query.", f".{third}.") for third in ("query", "key", "value")]
            if all(name in tensors for name in names):
                tensors[query.replace(".query.", ".qkv.")] = np.concatenate([tensors.pop(name) for name in names])
    return tensors


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


def _as_it_is(name, path):
    return Rule((name,), path, lambda tensor: tensor, lambda array: [array])


def _norm(name, path):
    return [_as_it_is(f"{name}.weight", f"{path}/gamma"), _as_it_is(f"{name}.bias", f"{path}/beta")]


def _dense(name, path):
    kernel = Rule((f"{name}.weight",), f"{path}/kernel", lambda weight: weight.T, lambda kernel: [kernel.T])
    return [kernel, _as_it_is(f"{name}.bias", f"{path}/bias")]
